"""Record batches decoded straight into columns.

kafka-python makes two objects per record and looks at every field of it, most of what reading costs. The pipeline
needs key, value and offset only, so this decoder walks the bytes of a whole batch once and hands them on as lists.
Batches are decoded when their records are wanted: a fetch is bounded in bytes on the wire, and what a compressed one
grows to would not be.

The seam is ``Fetcher.PartitionRecords``, a class that kafka-python looks up for each fetched partition. It is no
documented extension point: :func:`install` takes it only in a library that looks as expected; in any other, records
come through the plain consumer, slower and equal. Format: https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

import inspect
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator, Sequence

    from kafka import KafkaConsumer

_PARAMETERS: Final = ["self", "tp", "records", "key_deserializer", "value_deserializer"]
_METHODS: Final = {"_consume_aborted_transactions_up_to", "_contains_abort_marker", "_is_batch_aborted", "drain"}
_FIELDS: Final = {"_buffer", "_pos", "_maybe_uncompress"}
_HAS_EPOCHS: Final = 2  # the message format since Kafka 0.11


@dataclass(frozen=True, slots=True)
class Columns:
    """Consecutive records of one partition.

    Attributes:
        offsets: (n,) strictly increasing; a range unless compaction tore gaps.
        keys: (n,) None where a record has none.
        values: (n,) None is a tombstone.
    """

    offsets: Sequence[int]
    keys: list[bytes | None]
    values: list[bytes | None]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def offset(self) -> int:
        """Of the last record."""
        return self.offsets[-1]

    def decode(self) -> Columns:
        """Itself; a :class:`Batch` needs more."""
        return self

    def cut(self, start: int, stop: int | None = None) -> Columns:
        """Records ``start`` to ``stop``, counted from 0."""
        if start == 0 and (stop is None or stop >= len(self.keys)):
            return self
        return Columns(self.offsets[start:stop], self.keys[start:stop], self.values[start:stop])


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it came, checksum verified, perhaps compressed.

    Attributes:
        raw: kafka-python's batch, message format 2.
        since: records below this offset are not wanted. A fetch returns whole batches, also when it starts inside one.
    """

    raw: DefaultRecordBatch
    since: int

    def __len__(self) -> int:
        return int(self.raw.records_count)

    @property
    def offset(self) -> int:
        """Of the last record; kafka-python skips what it is given while this is below the offset it asked for."""
        return int(self.raw.last_offset)

    def decode(self) -> Columns:
        """The wanted records.

        Raises:
            CorruptRecordError: if the bytes are not the records they claim to be.
        """
        columns = _decode(self.raw)
        return columns.cut(bisect_left(columns.offsets, self.since))


NOTHING: Final = Columns(range(0), [], [])


def joined(parts: Sequence[Columns]) -> Columns:
    """Consecutive pieces of one partition, none of them empty, as one."""
    if len(parts) <= 1:
        return parts[0] if parts else NOTHING
    dense = all(isinstance(part.offsets, range) for part in parts) and all(
        before.offset + 1 == after.offsets[0] for before, after in pairwise(parts)
    )
    return Columns(
        range(parts[0].offsets[0], parts[-1].offset + 1) if dense else [o for part in parts for o in part.offsets],
        [key for part in parts for key in part.keys],
        [value for part in parts for value in part.values],
    )


@dataclass(slots=True)
class Held:
    """Fetched records of one partition that nobody has taken yet.

    Attributes:
        waiting: not decoded.
        after: the offset after the last; further than one more than it where offsets have a gap.
        columns: decoded.
    """

    waiting: deque[Batch | Columns]
    after: int
    columns: Columns = NOTHING

    @property
    def left(self) -> int:
        """Records held; an upper bound, as a batch may hold some from before the wanted offset."""
        return len(self.columns) + sum(map(len, self.waiting))

    def take(self, wanted: int) -> Columns:
        """Up to ``wanted`` records, fewer only if no more are held."""
        parts: list[Columns] = []
        while wanted > 0 and (self.columns or self.waiting):
            if not self.columns:
                self.columns = self.waiting.popleft().decode()
            part, self.columns = self.columns.cut(0, wanted), self.columns.cut(wanted)
            wanted -= len(part)
            if part:
                parts.append(part)
        return joined(parts)


def from_records(records: Sequence[Any]) -> Columns:
    """Columns of the records that a plain consumer returns."""
    return Columns([r.offset for r in records], [r.key for r in records], [r.value for r in records])


def install(consumer: KafkaConsumer) -> bool:
    """Make ``consumer.poll`` return lists of :class:`Batch` or :class:`Columns` instead of records.

    Its ``max_records`` then counts these. Returns False, changing nothing, if this kafka-python has no such seam.
    """
    kind = getattr(Fetcher, "PartitionRecords", None)
    unpack = getattr(kind, "_unpack_records", None)
    if (
        unpack is None
        or list(inspect.signature(unpack).parameters) != _PARAMETERS
        or not set(dir(kind)) >= _METHODS
        or not set(dir(DefaultRecordBatch)) >= _FIELDS
        or not isinstance(getattr(consumer, "_fetcher", None), Fetcher)
    ):
        return False
    consumer._fetcher.PartitionRecords = _BatchRecords  # noqa: SLF001  # the seam, see above
    return True


def _decode(batch: Any) -> Columns:
    batch._maybe_uncompress()  # noqa: SLF001
    data, pos = bytes(batch._buffer), batch._pos  # noqa: SLF001  # bytes: slices need no second copy
    count, base = batch.records_count, batch.base_offset
    dense = batch.last_offset_delta == count - 1  # no gaps: the deltas say 0, 1, 2, ...
    deltas: list[int] = []
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    try:
        for _ in range(count):
            size, pos = decode_varint(data, pos)
            end = pos + size
            pos += 1  # attributes, unused
            while data[pos] > 0x7F:  # timestamp: the last byte of a varint has no high bit
                pos += 1
            pos += 1
            if dense:
                while data[pos] > 0x7F:
                    pos += 1
                pos += 1
            else:
                delta, pos = decode_varint(data, pos)
                deltas.append(delta)
            for column in (keys, values):
                size, pos = decode_varint(data, pos)
                if size < 0:
                    column.append(None)
                else:
                    column.append(data[pos : pos + size])
                    pos += size
            if pos > end:
                raise CorruptRecordError(f"a record of the batch at offset {base} is longer than it says")
            pos = end  # skips headers
    except (IndexError, ValueError) as error:
        raise CorruptRecordError(f"the batch at offset {base} ends within a record") from error
    if pos != len(data):
        raise CorruptRecordError(f"the batch at offset {base} has {len(data) - pos} bytes too many")
    return Columns(range(base, base + count) if dense else [base + delta for delta in deltas], keys, values)


def _decode_old(batch: Any, since: int) -> Columns:
    # Written before Kafka 0.11 and never since: no producers, no transactions, seldom enough to take the slow way.
    records = list(batch)
    if not all(record.validate_crc() for record in records):
        raise CorruptRecordError(f"a record in the batch at offset {batch.base_offset} fails its checksum")
    columns = from_records(records)
    return columns.cut(bisect_left(columns.offsets, since))


class _BatchRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python ships no types
    """One partition's share of a fetch, unpacked by batches instead of by records."""

    next_fetch_offset: int

    def _unpack_records(
        self, tp: Any, records: Any, key_deserializer: object, value_deserializer: object
    ) -> Iterator[Batch | Columns]:
        del key_deserializer, value_deserializer  # raw bytes are what we want
        while (batch := records.next_batch()) is not None:
            if self.check_crcs and not batch.validate_crc():
                where = f"{tp.topic}-{tp.partition}"
                raise CorruptRecordError(f"the batch of {where} at offset {batch.base_offset} fails its checksum")
            found: Batch | Columns
            if batch.magic < _HAS_EPOCHS:
                found = _decode_old(batch, self.fetch_offset)
                after = found.offset + 1 if found else 0
            else:
                self.leader_epoch = batch.leader_epoch
                found = NOTHING if self._is_hidden(batch) else Batch(batch, self.fetch_offset)
                # Compaction removes records but keeps a batch's last offset: going on after the last record that is
                # left would fetch a batch that lost its tail for ever.
                after = batch.next_offset
            # Set before the yield, as kafka-python does: an exception in the next batch finds this one accounted for.
            self.next_fetch_offset = max(self.next_fetch_offset, after)
            if len(found):
                self.records_read += len(found)
                yield found
        self.drain()

    def _is_hidden(self, batch: Any) -> bool:
        """Markers of transactions, and records of aborted ones."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)
