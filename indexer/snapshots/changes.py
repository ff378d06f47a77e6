"""What changed in the live view since a full snapshot was taken from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from indexer.snapshots import image
from indexer.view import LiveView

I64 = npt.NDArray[np.int64]
F16 = npt.NDArray[np.float16]


class Changes:
    """Notes for each ordinal in which period its item, or its counters, changed last.

    Add it to ``view.watchers``; all methods expect ``view.lock`` to be held. Splits and merges are not noted: deltas
    are filed by the routes of their full snapshot.

    Attributes:
        period: the present one, from 1 up; 0 stands for what is in the full snapshot.
    """

    def __init__(self) -> None:
        self.period = 1
        self._items = np.zeros(0, np.int32)
        self._counters = np.zeros(0, np.int32)
        self._last = 0

    def __call__(self, items: I64, counters: I64) -> None:
        """Ordinals of which the item or the counters are about to change; see :class:`LiveView`."""
        if len(items):
            self._items = _grown(self._items, int(items.max()) + 1)
            self._items[items] = self.period
        if len(counters):
            self._counters = _grown(self._counters, int(counters.max()) + 1)
            self._counters[counters] = self.period
        self._last = self.period

    def any_since(self, period: int) -> bool:
        """Whether a batch came after ``period``."""
        return self._last > period

    def since(self, period: int) -> tuple[I64, I64]:
        """Ordinals whose items, and whose counters, changed after ``period``; both ascending."""
        return np.flatnonzero(self._items > period), np.flatnonzero(self._counters > period)

    def next_period(self) -> int:
        """End the present period; returns its number."""
        self.period += 1
        return self.period - 1


class FrozenVectors:
    """The facet embeddings of a view as they were at one moment, read later, piece by piece.

    While it is among ``view.watchers`` it keeps a copy of what is overwritten, so that nobody has to hold the view
    still while hundreds of megabytes are copied.

    Args:
        view: its lock is held now.
    """

    def __init__(self, view: LiveView) -> None:
        self._view = view
        self._kept_at = np.full(view.totals.next_ordinal, -1, np.int32)
        self._kept: list[F16] = []
        self._count = 0

    def __call__(self, items: I64, _counters: I64) -> None:
        """Keep what is about to be overwritten."""
        items = items[items < len(self._kept_at)]
        items = items[self._kept_at[items] < 0]
        if len(items):
            self._kept_at[items] = self._count + np.arange(len(items))
            self._count += len(items)
            self._kept.append(
                np.stack([image.vectors(self._view, f, items) for f in range(self._view.meta.facets)], axis=1)
            )

    def read(self, facet: int, ordinals: I64) -> F16:
        """(n, d) float16 as of that moment. May be called by any thread, without the lock."""
        with self._view.lock:
            out = image.vectors(self._view, facet, ordinals)
            kept_at = self._kept_at[ordinals]
            late = np.flatnonzero(kept_at >= 0)
            if len(late):
                if len(self._kept) > 1:
                    self._kept = [np.concatenate(self._kept)]
                out[late] = self._kept[0][kept_at[late], facet]
        return out


def _grown(ticks: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    if size <= len(ticks):
        return ticks
    out = np.zeros(max(size, 2 * len(ticks)), np.int32)
    out[: len(ticks)] = ticks
    return out
