"""Engagements of each item as of any moment of the past: decayed counts and the latest one.

The same quantity that an index counts as it goes (each engagement weighs ``2 ** (-age / half_life)``), for training,
which asks about many moments. Nothing at or after the moment asked about is seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from numba import njit

if TYPE_CHECKING:
    from model_runtime.training.data import Int64Array

Float64Array = npt.NDArray[np.float64]

NEVER: Final = -1


@njit(cache=True)
def _accumulate(item: Int64Array, time: Int64Array, half_lives_ms: Float64Array, sums: Float64Array) -> None:
    for row in range(len(item)):
        same = row > 0 and item[row - 1] == item[row]
        for window in range(len(half_lives_ms)):
            before = 0.0
            if same:
                before = sums[row - 1, window] * 2.0 ** (-(time[row] - time[row - 1]) / half_lives_ms[window])
            sums[row, window] = before + 1.0


@njit(cache=True)
def _look_up(
    first: Int64Array,
    time: Int64Array,
    sums: Float64Array,
    half_lives_ms: Float64Array,
    items: Int64Array,
    moments: Int64Array,
    counts: Float64Array,
    latest: Int64Array,
) -> None:
    for column in range(len(items)):
        start, stop = first[items[column]], first[items[column] + 1]
        for row in range(len(moments)):
            at = start + np.searchsorted(time[start:stop], moments[row]) - 1
            if at < start:
                continue
            latest[row, column] = time[at]
            for window in range(len(half_lives_ms)):
                decay = 2.0 ** (-(moments[row] - time[at]) / half_lives_ms[window])
                counts[row, column, window] = sums[at, window] * decay


class EngagementHistory:
    """Answers for one span of engagements.

    Args:
        item: (E,) row of each engagement's item.
        time: (E,) epoch milliseconds, ascending.
        items: how many items there are.
        half_lives_s: W half-lives.
    """

    def __init__(
        self, item: npt.NDArray[np.integer], time: Int64Array, items: int, half_lives_s: tuple[int, ...]
    ) -> None:
        order = np.argsort(item, kind="stable")
        by_item = item[order].astype(np.int64)
        self._time = time[order]
        self._first = np.searchsorted(by_item, np.arange(items + 1)).astype(np.int64)
        self._half_lives_ms = np.array(half_lives_s, np.float64) * 1_000
        self._sums = np.empty((len(item), len(half_lives_s)))
        _accumulate(by_item, self._time, self._half_lives_ms, self._sums)

    def at(self, items: Int64Array, moments: Int64Array) -> tuple[Float64Array, Int64Array]:
        """(K, C, W) decayed counts and (K, C) time of the latest engagement, :data:`NEVER` where there is none.

        Args:
            items: (C,) item rows.
            moments: (K,) epoch milliseconds; engagements strictly before count.
        """
        counts = np.zeros((len(moments), len(items), len(self._half_lives_ms)))
        latest = np.full((len(moments), len(items)), NEVER, np.int64)
        _look_up(
            self._first, self._time, self._sums, self._half_lives_ms, items.astype(np.int64), moments, counts, latest
        )
        return counts, latest
