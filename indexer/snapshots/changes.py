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

    Add it to ``view.watchers``; methods expect the writer to be kept out by ``view.lock``, unless they say otherwise.
    Splits and merges are not noted: deltas are filed by the routes of their full snapshot.

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
        """Whether a batch came after ``period``. Needs no lock."""
        return self._last > period

    def counts(self) -> I64:
        """(periods + 1,) about how many items and counters changed after each period. Needs no lock."""
        periods = self.period + 1
        noted = [np.bincount(each, minlength=periods)[:periods] for each in (self._items, self._counters)]
        changed = noted[0] + noted[1]
        return np.asarray(changed[::-1].cumsum()[::-1] - changed)

    def items_changed(self) -> int:
        """How many items changed since the full snapshot. Needs no lock."""
        return int(np.count_nonzero(self._items))

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
        view: its lock keeps the writer out now.
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
            self._kept.append(image.vectors(self._view, items))

    def read(self, facets: I64, ordinals: npt.NDArray[np.uint32]) -> F16:
        """(n, d) float16 of items that were live at that moment, each in one facet (n,).

        By one thread, without the lock.
        """
        view = self._view
        with view.lock.shared():
            kept_at = self._kept_at[ordinals]
            late = np.flatnonzero(kept_at >= 0)
            if not len(late):
                return view.members.vectors(self._rows(facets, ordinals), ordinals)
            out = np.empty((len(ordinals), view.meta.dim), np.float16)
            here = np.flatnonzero(kept_at < 0)
            out[here] = view.members.vectors(self._rows(facets[here], ordinals[here]), ordinals[here])
            self._kept = [np.concatenate(self._kept)]
            out[late] = self._kept[0][kept_at[late], facets[late]]
            return out

    def _rows(self, facets: I64, ordinals: npt.NDArray[np.uint32]) -> I64:
        leaf = self._view.items["leaf"][ordinals, facets].astype(np.int64)
        return leaf * self._view.meta.facets + facets


def _grown(ticks: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    if size <= len(ticks):
        return ticks
    out = np.zeros(max(size, 2 * len(ticks)), np.int32)
    out[: len(ticks)] = ticks
    return out
