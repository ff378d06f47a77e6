"""From raw records to events: what can be applied, and dead letters for what cannot."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from schemas.config import LimitsConfig
from schemas.dead_letters import DeadLetter, Reason
from schemas.errors import RecordError
from schemas.events import (
    ENGAGEMENT,
    ITEM_EVENT,
    LATEST_MS,
    Engagement,
    ItemContent,
    ItemCreated,
    ItemDeleted,
    ItemUpdated,
)
from streamer.sources.base import Partition, Records, Stream

I64 = npt.NDArray[np.int64]
AnyEvent = ItemCreated | ItemUpdated | ItemDeleted | Engagement

_DETAIL_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Decoded:
    """Consecutive records of one partition after decoding.

    Attributes:
        events: (n,) what can be applied, in offset order.
        offsets: (n,) theirs.
        times: (n,) theirs: occurred_at, epoch milliseconds.
        values: (n,) their bytes; empty for a tombstone.
        letters: the rest, in offset order.
        next_offset: where the partition goes on.
        taken_at: monotonic seconds at which the records were taken from the source.
        start: offset from which they were read; None: not known.
        lost: records before ``start`` that were gone before they were read.
    """

    partition: Partition
    events: list[AnyEvent]
    offsets: I64
    times: I64
    values: list[bytes]
    letters: list[DeadLetter]
    next_offset: int
    taken_at: float
    start: int | None = None
    lost: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all values, those of letters too."""
        return sum(map(len, self.values)) + sum(len(letter.value or b"") for letter in self.letters)

    def split(self, count: int) -> tuple[Decoded, Decoded]:
        """The first ``count`` events with the letters before the next one, and the rest; ``0 < count < n``."""
        return self.split_at(int(self.offsets[count]))

    def split_at(self, offset: int) -> tuple[Decoded, Decoded]:
        """What lies below an offset, and the rest."""
        events = int(np.searchsorted(self.offsets, offset))
        letters = bisect_left(self.letters, offset, key=lambda letter: letter.offset)
        head = Decoded(
            self.partition,
            self.events[:events],
            self.offsets[:events],
            self.times[:events],
            self.values[:events],
            self.letters[:letters],
            offset,
            self.taken_at,
            self.start,
            self.lost,
        )
        tail = Decoded(
            self.partition,
            self.events[events:],
            self.offsets[events:],
            self.times[events:],
            self.values[events:],
            self.letters[letters:],
            self.next_offset,
            self.taken_at,
            offset,
        )
        return head, tail


class Decoder:
    """Validates records.

    Args:
        limits: what a record may be.
        check_content: raises RecordError for item content that the model cannot encode.
        clock: wall clock in epoch seconds.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        check_content: Callable[[ItemContent], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits
        self._check_content = check_content
        self._clock = clock

    def decode(self, records: Records, start: int | None = None, lost: int = 0) -> Decoded:
        """Sort records into events and dead letters; never raises for what a record holds.

        Args:
            records: consecutive ones.
            start: offset from which they were read, which is below the first where offsets have holes.
            lost: records before ``start`` that were gone before they were read.
        """
        taken_at = time.monotonic()
        now_ms = int(self._clock() * 1_000)
        items = records.partition.stream is Stream.ITEMS
        validate: Callable[[bytes], AnyEvent] = ITEM_EVENT.validate_json if items else ENGAGEMENT.validate_json
        max_bytes, latest = self._limits.max_record_bytes, now_ms + self._limits.max_future_s * 1_000
        events: list[AnyEvent] = []
        offsets: list[int] = []
        values: list[bytes] = []
        letters: list[DeadLetter] = []
        for row, (offset, key, value) in enumerate(zip(records.offsets, records.keys, records.values, strict=True)):
            try:
                if value is None:
                    when = now_ms if records.timestamps is None else records.timestamps[row]
                    # A record of a very old producer has no time, which Kafka gives as -1.
                    if not items:
                        raise RecordError(Reason.INVALID, "an engagement record has no value")
                    event: AnyEvent = tombstone(key, now_ms if when < 0 else when)
                elif len(value) > max_bytes:
                    raise RecordError(
                        Reason.OVERSIZED, f"{len(value)} bytes or more, limits.max_record_bytes is {max_bytes}"
                    )
                else:
                    event = validate(value)
                    if key is not None and key != event.item_id.encode():
                        raise RecordError(
                            Reason.KEY_MISMATCH, f"record key {key[:64]!r} is not the item_id {event.item_id[:64]!r}"
                        )
                    if items and not isinstance(event, ItemDeleted):
                        self._check_content(event)  # type: ignore[arg-type]  # items yields no Engagement
                if event.occurred_at > latest:
                    raise RecordError(
                        Reason.FUTURE,
                        f"occurred_at {event.occurred_at} is more than limits.max_future_s = "
                        f"{self._limits.max_future_s} s after this machine's clock ({now_ms})",
                    )
            except ValidationError as error:
                letters.append(_letter(records, offset, key, value, error, *_explain(error)))
            except RecordError as error:
                letters.append(_letter(records, offset, key, value, error, Reason(error.reason), str(error)))
            else:
                events.append(event)
                offsets.append(offset)
                values.append(value or b"")
        times = np.array([event.occurred_at for event in events], np.int64)
        return Decoded(
            records.partition,
            events,
            np.array(offsets, np.int64),
            times,
            values,
            letters,
            records.next_offset,
            taken_at,
            start,
            lost,
        )


def tombstone(key: bytes | None, when_ms: int) -> ItemDeleted:
    """A null value on the items topic deletes its key's item, as of the record's time, epoch milliseconds.

    Raises:
        RecordError: the key is no identifier.
    """
    try:
        item_id = "" if key is None else key.decode()
        return ItemDeleted(type="item.deleted", item_id=item_id, occurred_at=min(when_ms, LATEST_MS))
    except (UnicodeDecodeError, ValidationError):
        raise RecordError(
            Reason.KEY_MISMATCH, f"a tombstone needs an item_id as its key, not {key[:64] if key else key!r}"
        ) from None


def _explain(error: ValidationError) -> tuple[Reason, str]:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    kinds = {problem["type"] for problem in problems}
    if "json_invalid" in kinds:
        reason = Reason.UNPARSEABLE
    elif kinds & {"union_tag_invalid", "union_tag_not_found"} or any(p["loc"] == ("type",) for p in problems):
        reason = Reason.UNKNOWN_TYPE
    else:
        reason = Reason.INVALID
    described = [".".join(map(str, problem["loc"])) + ": " + problem["msg"] for problem in problems[:3]]
    return reason, "; ".join(text.lstrip(": ") for text in described)[:_DETAIL_CHARS]


def _letter(
    records: Records,
    offset: int,
    key: bytes | None,
    value: bytes | None,
    error: Exception,
    reason: Reason,
    detail: str,
) -> DeadLetter:
    return DeadLetter(
        reason=reason,
        detail=detail,
        topic=records.partition.topic,
        partition=records.partition.number,
        offset=offset,
        failed_at_ms=time.time_ns() // 1_000_000,
        key=key,
        value=value,
        error=type(error).__name__,
    )
