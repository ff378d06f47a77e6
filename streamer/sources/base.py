"""The seam between the outside and the pipeline: partitions of raw records with offsets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol


class Stream(StrEnum):
    """Which of the two logical streams a partition belongs to."""

    ITEMS = "items"
    ENGAGEMENTS = "engagements"


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One partition of one stream; ``topic`` is its name at the source."""

    stream: Stream
    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.number}"


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive records of one partition, as columns.

    Attributes:
        partition: where they come from.
        offsets: (n,) strictly increasing.
        keys: (n,) record keys; None where a record has none.
        values: (n,) record values; None is a tombstone.
        next_offset: where reading goes on after these.
        timestamps: (n,) record times, epoch milliseconds; None where the source has none. Gives tombstones a time.
        lost: records removed at the source before they were read, between the last of the partition and these.
    """

    partition: Partition
    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    next_offset: int
    timestamps: Sequence[int] | None = None
    lost: int = 0

    def __len__(self) -> int:
        return len(self.values)


class Source(Protocol):
    """Reads records of a fixed set of partitions. One thread uses it at a time."""

    def partitions(self) -> list[Partition]:
        """The partitions this source reads, sorted."""
        ...

    def seek(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        """Go on reading each partition at the given offset; those not named start at the oldest record there is.

        Returns:
            Where each partition starts.

        Raises:
            BrokerError, UsageError: if a position lies outside what the source holds.
        """
        ...

    def poll(self, max_records: int, timeout_s: float) -> list[Records]:
        """Up to ``max_records`` records, waiting at most ``timeout_s`` when there are none."""
        ...

    def end_offsets(self) -> dict[Partition, int]:
        """The offset after the last record of each partition, now. May ask the broker."""
        ...

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Stop returning records of these partitions, without losing position."""
        ...

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Undo :meth:`pause`."""
        ...

    def identity(self) -> dict[str, str]:
        """What tells this source from another with the same partition names; at least ``kind``."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...


def clip(records: Records, low: int, high: int | None = None) -> tuple[Records, int]:
    """The records with ``low <= offset < high``, and how many of those below ``high`` lie below ``low``."""
    offsets = records.offsets
    first = bisect_left(offsets, low)
    last = len(offsets) if high is None else bisect_left(offsets, high)
    if first == 0 and last == len(offsets) and (high is None or records.next_offset <= high):
        return records, 0
    after = records.next_offset if high is None else min(high, records.next_offset)
    times = None if records.timestamps is None else records.timestamps[first:last]
    kept = replace(
        records,
        offsets=offsets[first:last],
        keys=records.keys[first:last],
        values=records.values[first:last],
        next_offset=after,
        timestamps=times,
    )
    return kept, min(first, last)
