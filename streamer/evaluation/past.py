"""The past at a moment that only moves forward: which items are in the pool, what they were engaged, who is fresh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from streamer.evaluation.system import F64, I32, I64, Bool, News

if TYPE_CHECKING:
    from schemas.events import ItemContent
    from streamer.evaluation.timeline import Timeline

HOUR_MS: Final = 3_600_000
_NEVER: Final = np.iinfo(np.int64).min // 2


class Past:
    """Everything before ``now_ms``, and nothing else: what comes later is read by :meth:`advance` alone.

    Args:
        timeline: the whole log.
        half_lives_s: of the decayed counts.
        pool_s: an item neither created nor engaged for so long leaves the pool, and comes back when engaged; None
            keeps all.

    Attributes:
        now_ms: the moment.
        live: (N,) bool, items of the pool.
        created_at: (N,) int64 epoch milliseconds, when each came into the pool last.
        total: (N,) int64 engagements so far.
        hour: (N,) int64 engagements of the last hour.
        contents: what is known of each item by now; None before it was created.
    """

    def __init__(self, timeline: Timeline, half_lives_s: tuple[int, ...], pool_s: float | None) -> None:
        items = len(timeline.log.item_ids)
        self._timeline = timeline
        self._half_lives_ms = np.array(half_lives_s, np.float64) * 1_000
        self._pool_ms = None if pool_s is None else int(pool_s * 1_000)
        self._events = self._items = self._hour_ago = 0
        self._last_at = np.full(items, _NEVER, np.int64)
        self._decayed = np.zeros((items, len(half_lives_s)))
        self.half_lives_s = half_lives_s
        self.now_ms = _NEVER
        self.live: Bool = np.zeros(items, np.bool_)
        self.created_at: I64 = np.zeros(items, np.int64)
        self.total: I64 = np.zeros(items, np.int64)
        self.hour: I64 = np.zeros(items, np.int64)
        self.contents: list[ItemContent | None] = [None] * items

    def advance(self, now_ms: int) -> News:
        """Go on to a moment; events of that very moment have not happened yet.

        Raises:
            ValueError: if it lies before the last one.
        """
        if now_ms < self.now_ms:
            raise ValueError(f"time would go back from {self.now_ms} to {now_ms}")
        line, log = self._timeline, self._timeline.log
        begin, offset = self._items, self._events
        self._items = int(np.searchsorted(line.item_at, now_ms))
        self._events = int(np.searchsorted(log.time, now_ms))
        changed = line.item_row[begin : self._items]
        for row, content in zip(changed.tolist(), line.contents[begin : self._items], strict=True):
            self.contents[row] = content
        engaged, engaged_at = log.item[offset : self._events], log.time[offset : self._events]
        arrived, arrived_at = self._arrivals(changed, line.item_at[begin : self._items], engaged, engaged_at)
        self._count(engaged, engaged_at, now_ms)
        left = self._departures(now_ms)
        kept = ~np.isin(arrived, left)
        return News(now_ms, arrived[kept], arrived_at[kept], left, engaged, engaged_at, offset)

    @property
    def happened(self) -> int:
        """How many engagements of the log have happened."""
        return self._events

    def decayed(self) -> F64:
        """(N, W) engagements, each weighing ``2 ** (-age / half_life)``."""
        return self._decayed

    def age_s(self) -> F64:
        """(N,) seconds since each item came into the pool."""
        return np.asarray((self.now_ms - self.created_at) / 1_000.0)

    def _arrivals(self, changed: I32, changed_at: I64, engaged: I32, engaged_at: I64) -> tuple[I32, I64]:
        """Rows that came or changed, each once with its latest time."""
        rows, last = np.unique(changed[::-1], return_index=True)
        times = changed_at[::-1][last]
        fresh = rows[~self.live[rows]]
        self.created_at[fresh] = times[~self.live[rows]]
        self.live[rows] = True
        back, first = np.unique(engaged, return_index=True)
        idle = ~self.live[back] & (self._last_at[back] > _NEVER)
        back, at = back[idle], engaged_at[first[idle]]
        self.live[back] = True
        self.created_at[back] = at
        self._last_at[rows] = np.maximum(self._last_at[rows], times)
        return np.concatenate([rows, back]).astype(np.int32), np.concatenate([times, at])

    def _count(self, engaged: I32, engaged_at: I64, now_ms: int) -> None:
        log = self._timeline.log
        if self._events > len(engaged):
            self._decayed *= np.exp2(-(now_ms - self.now_ms) / self._half_lives_ms)
        weights = np.exp2(-(now_ms - engaged_at)[:, None] / self._half_lives_ms)
        np.add.at(self._decayed, engaged, weights)
        np.add.at(self.total, engaged, 1)
        np.add.at(self.hour, engaged, 1)
        gone = int(np.searchsorted(log.time, now_ms - HOUR_MS))
        np.subtract.at(self.hour, log.item[self._hour_ago : gone], 1)
        self._hour_ago = gone
        np.maximum.at(self._last_at, engaged, engaged_at)
        self.now_ms = now_ms

    def _departures(self, now_ms: int) -> I32:
        if self._pool_ms is None:
            return np.empty(0, np.int32)
        left = np.flatnonzero(self.live & (self._last_at < now_ms - self._pool_ms)).astype(np.int32)
        self.live[left] = False
        return left
