"""Events from Kafka: partitions assigned by hand, read from stored offsets, never from what the group committed.

The consumer hands over all it has fetched at once; what a poll does not take stays here. That is not for speed of the
hand-over: kafka-python keeps one fetch in flight per broker and leaves a partition with records at hand out of it, so
that one busy partition read in small steps would wait out ``fetch_max_wait_ms`` of the idle ones again and again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError, LeaderNotAvailableError, LogTruncationError, OffsetOutOfRangeError
from kafka.structs import OffsetAndMetadata

from schemas.errors import BrokerError
from streamer.kafka_clients import (
    asked,
    is_connected,
    open_consumer,
    topic_id,
)
from streamer.sources.base import Partition, Records
from streamer.sources.kafka_partitions import PartitionLag, find_partitions, read_lag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from kafka.consumer.fetcher import ConsumerRecord

    from schemas.config import Config

__all__ = ["KafkaSource", "PartitionLag", "read_lag"]

log = structlog.get_logger(__name__)

_ASK_MS: Final = 2_000  # while reading, which the answer must not hold up
_CLOSE_MS: Final = 2_000  # for the last commit, and for each client


@dataclass(slots=True)
class _Held:
    """Fetched records of one partition that no poll has taken yet.

    Attributes:
        after: the offset after the last; further than one more than it where offsets have a gap.
    """

    records: list[ConsumerRecord]
    after: int
    taken: int = 0

    @property
    def left(self) -> int:
        return len(self.records) - self.taken

    def take(self, wanted: int) -> list[ConsumerRecord]:
        start, self.taken = self.taken, min(self.taken + wanted, len(self.records))
        return self.records[start : self.taken]


class KafkaSource:
    """A :class:`~streamer.sources.base.Source` over the two topics, all their partitions.

    Holds at most about three fetches (``kafka.fetch_max_bytes`` each, before decompression) in memory. Loss of the
    broker while reading is waited out: polls return nothing until it is back.

    Raises:
        BrokerError: if no broker answers within ``kafka.connect_timeout_s``, or a topic is missing.
        ConfigError: if both streams are given the same topic.
    """

    def __init__(self, config: Config) -> None:
        self._config = config.kafka
        self._partitions = sorted(find_partitions(config.kafka))
        self._consumer = open_consumer(config.kafka)
        try:
            # Commits have a consumer of their own: one with a group can't read while the group's coordinator is away.
            self._committer = open_consumer(config.kafka, group_id=config.kafka.group_id)
        except BrokerError:
            self._consumer.close(timeout_ms=_CLOSE_MS)
            raise
        self._keys = {TopicPartition(p.topic, p.number): p for p in self._partitions}
        self._names = {partition: key for key, partition in self._keys.items()}
        self._consumer.assign(list(self._keys))
        self._paused: set[Partition] = set()
        self._held: dict[Partition, _Held] = {}
        self._next: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        self._topic_ids: dict[str, UUID] = {}
        self._missing: set[str] = set()
        self._connected = True
        self._commit_failed = False
        self._uncommitted: dict[TopicPartition, OffsetAndMetadata] = {}
        self._closed = False

    def partitions(self) -> list[Partition]:
        """All partitions of both topics as they were when the source was made, sorted."""
        return list(self._partitions)

    def seek(self, positions: Mapping[Partition, int]) -> None:
        """Go on reading each partition at the given offset; those not named start at the oldest record kept.

        Raises:
            BrokerError: if a position lies outside what the broker holds, or its partition does not exist. It is never
                reset to what happens to be there, since records would be lost or applied twice without a word.
        """
        beginnings, ends = self._ask("beginning_offsets"), self._ask("end_offsets")
        self._ends = ends
        for partition, offset in positions.items():
            if partition not in self._names:
                raise BrokerError(
                    f"the stored offset {offset} is of {partition}, which Kafka at {self._config.bootstrap_servers} "
                    "does not have; was the topic created anew? Restore it, or start with an empty store"
                )
            if not beginnings[partition] <= offset <= ends[partition]:
                raise self._out_of_range(partition, offset, beginnings[partition], ends[partition])
        self._held.clear()
        for key, partition in self._keys.items():
            self._next[partition] = positions.get(partition, beginnings[partition])
            self._consumer.seek(key, self._next[partition])

    def poll(self, max_records: int, timeout_s: float) -> list[Records]:
        """Up to ``max_records`` records in all, shared evenly among the partitions that have some at hand.

        ``Records`` may be empty: then the offset moved past markers of transactions, or records that compaction or an
        aborted transaction removed, and ``next_offset`` says where to.

        Raises:
            BrokerError: if records were removed before they were read, fail their checksum, or are refused to us.
        """
        if not self._next:
            self.seek({})
        if not self._ready():
            self._fetch(timeout_s)
        return self._take(max_records)

    def end_offsets(self) -> dict[Partition, int]:
        """The offset after the last whole transaction of each partition, asked of the broker.

        While the broker is away: what it said last, since an outage must not end the reading.

        Raises:
            BrokerError: if it does not answer and never did.
        """
        away = not self._connected and not is_connected(self._consumer)
        if not (away and self._ends):
            try:
                self._ends = self._ask("end_offsets", _ASK_MS if self._ends else None)
            except BrokerError as error:
                if not self._ends:
                    raise
                log.warning("kafka_ends_not_known", error=str(error))
        return dict(self._ends)

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Stop returning and fetching records of these partitions, without losing position."""
        self._paused.update(partitions)
        self._consumer.pause(*(self._names[partition] for partition in partitions))

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Undo :meth:`pause`."""
        self._paused.difference_update(partitions)
        self._consumer.resume(*(self._names[partition] for partition in partitions))

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Tell lag tools how far the store is, without waiting for the broker; a failure is logged, never raised."""
        if not positions:
            return
        offsets = {self._names[partition]: OffsetAndMetadata(offset, "", -1) for partition, offset in positions.items()}
        self._uncommitted |= offsets
        try:
            self._committer.commit_async(offsets, callback=self._committed)
        except KafkaError as error:
            self._committed(offsets, error)

    def close(self) -> None:
        """Commit what :meth:`commit` was told last, and disconnect; idempotent, takes a few seconds at most."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._uncommitted:
                self._committer.commit(self._uncommitted, timeout_ms=_CLOSE_MS)
        except KafkaError as error:
            log.warning("kafka_commit_failed", group=self._config.group_id, error=str(error))
        finally:
            self._committer.close(timeout_ms=_CLOSE_MS)
            self._consumer.close(timeout_ms=_CLOSE_MS)

    def _committed(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], answer: object) -> None:
        if isinstance(answer, Exception):
            if not self._commit_failed:  # once for a broker that is away, not five times a second
                log.warning("kafka_commit_failed", group=self._config.group_id, error=str(answer))
            self._commit_failed = True
            return
        self._commit_failed = False
        for key, offset in offsets.items():
            if self._uncommitted.get(key) == offset:
                del self._uncommitted[key]

    def _ready(self) -> list[Partition]:
        return [partition for partition in self._held if partition not in self._paused]

    def _fetch(self, timeout_s: float) -> None:
        """Take over all that is fetched. No partition that may be read holds anything here, so memory stays bounded."""
        timeout_ms = int(timeout_s * 1000)
        try:
            fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=sys.maxsize)
            ahead = {partition: self._consumer.position(key, timeout_ms=0) for key, partition in self._keys.items()}
        except OffsetOutOfRangeError as error:
            raise self._lost(error) from error
        except LogTruncationError as error:
            raise BrokerError(
                f"{error}: a broker lost records that were read already (an unclean leader election). "
                "The store may hold records the topics no longer have; rebuild it, or accept that and reset its offsets"
            ) from error
        except KafkaError as error:
            if not error.retriable:
                raise BrokerError(f"Kafka at {self._config.bootstrap_servers}: {error} while reading") from error
            log.warning("kafka_read_retried", error=str(error))
            return
        self._note_connection(bool(fetched))
        self._check_topics()
        for partition, after in ahead.items():
            if after is not None and partition not in self._held and after > self._next[partition]:
                self._held[partition] = _Held(fetched.get(self._names[partition], []), after)

    def _take(self, max_records: int) -> list[Records]:
        ready = self._ready()
        # Those with least first: what they leave of their share goes to the others. Nobody starves, as nothing is
        # fetched until all have handed over what they hold.
        ready.sort(key=lambda partition: self._held[partition].left)
        taken: list[Records] = []
        room = max_records
        for position, partition in enumerate(ready):
            share = -(-room // (len(ready) - position))
            if share or not self._held[partition].left:
                taken.append(self._cut(partition, share))
                room -= len(taken[-1])
        return taken

    def _cut(self, partition: Partition, wanted: int) -> Records:
        held = self._held[partition]
        records = held.take(wanted)
        if held.left:
            self._next[partition] = records[-1].offset + 1
        else:
            del self._held[partition]
            self._next[partition] = held.after
        return Records(
            partition,
            [record.offset for record in records],
            [record.key for record in records],
            [record.value for record in records],
            self._next[partition],
            [record.timestamp for record in records],
        )

    def _note_connection(self, has_records: bool) -> None:  # noqa: FBT001  # one caller
        connected = has_records or is_connected(self._consumer)
        if connected != self._connected:
            self._connected = connected
            event = "kafka_is_back" if connected else "kafka_is_away"
            log.warning(event, bootstrap_servers=self._config.bootstrap_servers)

    def _check_topics(self) -> None:
        """A topic deleted and made again starts at 0: going on at our offset would skip its first records silently.

        Records of the new one may have been returned before this notices, within ``METADATA_AGE_MS``; as nothing of
        the old one can be trusted any more, that does no further harm.
        """
        for topic in {partition.topic for partition in self._partitions}:
            now = topic_id(self._consumer, topic)
            if now is None:
                if topic in self._topic_ids and topic not in self._missing:
                    self._missing.add(topic)
                    log.warning("kafka_topic_is_away", topic=topic, bootstrap_servers=self._config.bootstrap_servers)
                continue
            self._missing.discard(topic)
            if self._topic_ids.setdefault(topic, now) != now:
                raise BrokerError(
                    f"topic {topic!r} at {self._config.bootstrap_servers} was deleted and created anew while it was "
                    "read; what the store holds is from the old one: start with an empty store"
                )

    def _ask(self, which: str, limit_ms: int | None = None) -> dict[Partition, int]:
        timeout_s = self._config.request_timeout_s if limit_ms is None else limit_ms / 1000

        def ask() -> dict[TopicPartition, int]:
            try:
                keys, timeout_ms = list(self._keys), int(timeout_s * 1000)
                found: dict[TopicPartition, int] = getattr(self._consumer, which)(keys, timeout_ms=timeout_ms)
            except KeyError as error:  # kafka-python's way to say that a partition has no leader now
                raise LeaderNotAvailableError(str(error)) from error
            return found

        offsets = asked(self._config, f"asking for {which.replace('_', ' ')}", ask, timeout_s)
        return {partition: offsets[key] for key, partition in self._keys.items()}

    def _lost(self, error: OffsetOutOfRangeError) -> BrokerError:
        asked: dict[TopicPartition, int] = error.args[0]
        beginnings, ends = self._ask("beginning_offsets"), self._ask("end_offsets")
        key, offset = next(iter(asked.items()))
        partition = self._keys[key]
        return self._out_of_range(partition, offset, beginnings[partition], ends[partition])

    def _out_of_range(self, partition: Partition, offset: int, beginning: int, end: int) -> BrokerError:
        why = (
            "records not yet read were removed, by the topic's retention or by hand; raise retention.ms, and rebuild "
            "from a complete topic"
            if offset < beginning
            else "the topic was cut or created anew; restore it, or start with an empty store"
        )
        return BrokerError(
            f"topic {partition.topic} partition {partition.number}: the next offset to read is {offset}, but Kafka at "
            f"{self._config.bootstrap_servers} holds {beginning} to {end}: {why}"
        )
