"""The seam between the outside and the pipeline: partitions of raw records with offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """

    partition: Partition
    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    next_offset: int
    timestamps: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.values)


class Source(Protocol):
    """Reads records of a fixed set of partitions. One thread uses it at a time."""

    def partitions(self) -> list[Partition]:
        """The partitions this source reads, sorted."""
        ...

    def seek(self, positions: Mapping[Partition, int]) -> None:
        """Go on reading each partition at the given offset; those not named start at the beginning.

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

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Tell lag tools how far the store is; never read back. May be lost, may be a no-op."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...
