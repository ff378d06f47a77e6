"""Several partitions read as one stream in event time.

Partitions advance at their own pace. Without alignment a backfill would read engagements long before their items and
let them expire as waiting. So events are released only up to the time that every partition has reached. A partition
with nothing left to read holds nobody back, so that a live stream passes straight through.

An event's place is its partition's clock, the latest time up to there in its partition; at equal clocks items come
first, then partitions in their order. That order depends on the records alone, not on how they were polled, so that a
run that was stopped and started again applies them as an undisturbed one does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from streamer.decode import Decoded
from streamer.sources.base import Partition, Stream

_FOREVER: Final = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True)
class Aligned:
    """Decoded records with the clock of their partition at each event, (n,) int64 ascending, epoch milliseconds."""

    decoded: Decoded
    clocks: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.clocks) + len(self.decoded.letters)

    def split(self, count: int) -> tuple[Aligned, Aligned]:
        """The first ``count`` events and the rest, as :meth:`Decoded.split`."""
        head, tail = self.decoded.split(count)
        return Aligned(head, self.clocks[:count]), Aligned(tail, self.clocks[count:])


class Aligner:
    """Holds decoded records until their time has come.

    After a restart the clocks begin at 0 again. That changes no order: what was applied is all that comes first, so
    what is left is either later than any clock then, or the rest of the one partition whose turn it was.

    Attributes:
        clocks: the latest event time seen of each partition, epoch milliseconds.
    """

    def __init__(self, partitions: Iterable[Partition]) -> None:
        ranked = sorted(partitions, key=lambda partition: (partition.stream is not Stream.ITEMS, partition))
        self._held: dict[Partition, deque[Aligned]] = {partition: deque() for partition in ranked}
        self.clocks: dict[Partition, int] = dict.fromkeys(ranked, 0)

    def push(self, decoded: Decoded) -> None:
        """Take in what was read next of its partition."""
        clocks = np.maximum.accumulate(np.maximum(decoded.times, self.clocks[decoded.partition]))
        self._held[decoded.partition].append(Aligned(decoded, clocks))
        if len(clocks):
            self.clocks[decoded.partition] = int(clocks[-1])

    def held(self, partition: Partition) -> int:
        """Records of a partition that wait here."""
        return sum(map(len, self._held[partition]))

    def held_bytes(self, partition: Partition) -> int:
        """Bytes of their values."""
        return sum(aligned.decoded.nbytes for aligned in self._held[partition])

    def waiting(self) -> bool:
        """Whether anything waits here."""
        return any(self._held.values())

    def release(self, ignored: Collection[Partition], latest_ms: int = _FOREVER) -> list[Aligned]:
        """What may go on now; nothing that is read later comes before it. Each partition's is consecutive.

        Args:
            ignored: partitions that have nothing more to read for now.
            latest_ms: nothing later than this is released.
        """
        frontier, turn = min(
            ((self.clocks[partition], rank) for rank, partition in enumerate(self._held) if partition not in ignored),
            default=(_FOREVER, 0),
        )
        if latest_ms < frontier:
            frontier, turn = latest_ms, len(self._held)
        out: list[Aligned] = []
        for rank, held in enumerate(self._held.values()):
            # The partition whose turn it is may give more at this very clock, before those of a later rank.
            side: Literal["left", "right"] = "right" if rank <= turn else "left"
            while held:
                ready = int(np.searchsorted(held[0].clocks, frontier, side))
                if ready == len(held[0].clocks):
                    out.append(held.popleft())
                    continue
                if ready:
                    head, held[0] = held[0].split(ready)
                    out.append(head)
                break
        return out
