"""Members of a group for tests: each turns on a thread of its own and writes down which shards it owned when."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from streamer.membership import KafkaGroup

if TYPE_CHECKING:
    from schemas.config import KafkaConfig
    from streamer.membership import Membership


@dataclass
class Notes:
    """What an owner was told.

    Attributes:
        told: (what, shards) in order.
        owned: shard -> (from, to) in ``time.monotonic`` seconds; the last may be open.
        revoke_s: how long a revocation takes.
    """

    revoke_s: float = 0.0
    told: list[tuple[str, list[int]]] = field(default_factory=list)
    owned: dict[int, list[list[float]]] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    during_revoke: list[bool] = field(default_factory=list)
    membership: Membership | None = None

    def assign(self, shards: Collection[int], epoch: int) -> None:
        self.told.append(("assign", sorted(shards)))
        self.epochs.append(epoch)
        for shard in shards:
            self.owned.setdefault(shard, []).append([time.monotonic(), float("inf")])

    def revoke(self, shards: Collection[int], deadline_s: float) -> None:
        self.told.append(("revoke", sorted(shards)))
        self.deadlines.append(deadline_s)
        ends = time.monotonic() + self.revoke_s
        while time.monotonic() < ends:
            time.sleep(0.05)
            if self.membership is not None:
                self.during_revoke.extend(self.membership.holds(shard) for shard in shards)
        self._end(shards)

    def lost(self, shards: Collection[int]) -> None:
        self.told.append(("lost", sorted(shards)))
        self._end(shards)

    def stop(self) -> None:
        """The process ended: nothing is owned any more."""
        self._end([shard for shard, spans in self.owned.items() if spans[-1][1] == float("inf")])

    def now(self) -> set[int]:
        return {shard for shard, spans in self.owned.items() if spans[-1][1] == float("inf")}

    def _end(self, shards: Collection[int]) -> None:
        for shard in shards:
            self.owned[shard][-1][1] = time.monotonic()


class Member:
    """A running member; ``error`` is what ended its turns."""

    def __init__(self, config: KafkaConfig, name: str, *, revoke_s: float = 0.0) -> None:
        self.notes = Notes(revoke_s)
        self.group = KafkaGroup(config, self.notes, name)
        self.notes.membership = self.group
        self.error: Exception | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.group.turn(0.1)
        except Exception as error:  # noqa: BLE001
            self.error = error

    def leave(self) -> None:
        """End as a process does; the broker learns of it by the session timeout only."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._thread.join()
        self.notes.stop()
        self.group.close()

    def alive(self) -> bool:
        assert self.error is None, self.error
        return True


def overlaps(members: Collection[Notes]) -> list[tuple[int, list[float], list[float]]]:
    """Where two owned the same shard at once."""
    found = []
    for shard in {shard for notes in members for shard in notes.owned}:
        spans = sorted(span for notes in members for span in notes.owned.get(shard, ()))
        found += [(shard, before, after) for before, after in pairwise(spans) if after[0] < before[1]]
    return found
