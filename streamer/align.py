"""Several partitions read as one stream in event time.

Partitions advance at their own pace. Without alignment a backfill would read engagements long before their items and
let them expire as waiting. So events are released only up to the time that every partition has reached. A partition
with nothing left to read holds nobody back, so that a live stream passes straight through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

import numpy as np

from streamer.decode import Decoded
from streamer.sources.base import Partition

_FOREVER = np.iinfo(np.int64).max


class Aligner:
    """Holds decoded records until their time has come.

    Attributes:
        clocks: the latest event time seen of each partition, epoch milliseconds.
    """

    def __init__(self, partitions: Iterable[Partition]) -> None:
        self._held: dict[Partition, deque[Decoded]] = {partition: deque() for partition in partitions}
        self.clocks: dict[Partition, int] = dict.fromkeys(self._held, 0)

    def push(self, decoded: Decoded) -> None:
        """Take in what was read next of its partition."""
        self._held[decoded.partition].append(decoded)
        if len(decoded.times):
            latest = int(decoded.times.max())
            self.clocks[decoded.partition] = max(self.clocks[decoded.partition], latest)

    def held(self, partition: Partition) -> int:
        """Events of a partition that wait here."""
        return sum(len(decoded.events) + len(decoded.letters) for decoded in self._held[partition])

    def waiting(self) -> bool:
        """Whether anything waits here."""
        return any(self._held.values())

    def lagging(self, ignored: Collection[Partition]) -> list[Partition]:
        """Partitions that hold the others back and have nothing here; ``ignored`` ones hold nobody back."""
        return [partition for partition, held in self._held.items() if not held and partition not in ignored]

    def release(self, ignored: Collection[Partition]) -> list[Decoded]:
        """What may go on now, items before engagements where times allow.

        Args:
            ignored: partitions that have nothing more to read for now.
        """
        frontier = min((self.clocks[p] for p in self._held if p not in ignored), default=_FOREVER)
        out: list[Decoded] = []
        for partition in sorted(self._held, key=lambda p: (p.stream != "items", p)):
            held = self._held[partition]
            while held:
                ready = _reached(held[0], frontier)
                if ready == len(held[0].events):
                    out.append(held.popleft())
                    continue
                if ready:
                    head, held[0] = held[0].split(ready)
                    out.append(head)
                break
        return out


def _reached(decoded: Decoded, frontier: int) -> int:
    """How many leading events come no later than ``frontier``."""
    if frontier == _FOREVER or not len(decoded.times):
        return len(decoded.events)
    late = np.flatnonzero(decoded.times > frontier)
    return int(late[0]) if len(late) else len(decoded.events)
