"""Records that were fetched from Kafka and are not yet asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamer.sources.base import Records

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kafka.consumer.fetcher import ConsumerRecord

    from streamer.sources.base import Partition


@dataclass(slots=True)
class _Held:
    """Fetched records of one partition that no poll has taken yet.

    Attributes:
        after: the offset after the last; further than one more than it where offsets have a gap.
        lost: how many offsets before ``after`` were removed before they were read.
    """

    records: Sequence[ConsumerRecord]
    after: int
    taken: int = 0
    lost: int = 0

    @property
    def left(self) -> int:
        return len(self.records) - self.taken

    def take(self, wanted: int) -> Sequence[ConsumerRecord]:
        start, self.taken = self.taken, min(self.taken + wanted, len(self.records))
        return self.records[start : self.taken]


class Backlog:
    """What is held of each partition, and where it goes on; paused ones keep what they have."""

    def __init__(self) -> None:
        self._held: dict[Partition, _Held] = {}
        self._next: dict[Partition, int] = {}
        self._paused: set[Partition] = set()

    @property
    def started(self) -> bool:
        """Whether it was told where to start."""
        return bool(self._next)

    def start(self, positions: Mapping[Partition, int]) -> None:
        """Forget what is held; each partition goes on at its offset."""
        self._held.clear()
        self._next = dict(positions)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Hand out no records of these."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Undo :meth:`pause`."""
        self._paused.difference_update(partitions)

    def ready(self) -> list[Partition]:
        """Those of which something can be taken."""
        return [partition for partition in self._held if partition not in self._paused]

    def add(self, partition: Partition, records: Sequence[ConsumerRecord], after: int) -> None:
        """Hold what was fetched, unless that is nothing; ``after`` is where the next fetch starts."""
        if partition not in self._held and after > self._next[partition]:
            self._held[partition] = _Held(records, after)

    def fetched_to(self, partition: Partition) -> int:
        """The offset after the last that was fetched."""
        held = self._held.get(partition)
        return held.after if held is not None else self._next[partition]

    def skip(self, partition: Partition, beginning: int) -> None:
        """Go on at ``beginning`` after what is held: the offsets in between were removed, and count as lost."""
        lost = beginning - self.fetched_to(partition)
        held = self._held.setdefault(partition, _Held([], beginning))
        held.after = beginning
        held.lost += lost

    def take(self, max_records: int) -> list[Records]:
        """Up to ``max_records`` records in all, shared evenly among the partitions that have some.

        Those with least come first: what they leave of their share goes to the others. Nobody starves, as nothing is
        to be fetched until all have handed over what they hold.
        """
        ready = sorted(self.ready(), key=lambda partition: self._held[partition].left)
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
            lost, self._next[partition] = 0, records[-1].offset + 1
        else:
            del self._held[partition]
            lost, self._next[partition] = held.lost, held.after
        return Records(
            partition,
            [record.offset for record in records],
            [record.key for record in records],
            [record.value for record in records],
            self._next[partition],
            [record.timestamp for record in records],
            lost,
        )
