"""In which order a posting list is kept: what is worth most whoever asks comes first, so that a scan may stop early.

Where the model has a prior of its own, the impact of an item is what that says it is worth, see
:mod:`model_runtime.prior`. That is computed at a moment, the *landmark*, in epoch milliseconds; for an item that is
engaged later, at its last engagement. As stream time goes on, the landmark follows, and all lists are sorted anew: no
more often than :attr:`Impact.stride_ms` says, and once enough has changed to pay for it, or a quarter of the shortest
half-life has passed. The store remembers the landmark, so that whoever opens it finds the same order. An event dated in
the future does not take the landmark there.

Elsewhere the impact of an item is its decayed engagements of one window plus ``creation`` engagements that it got for
being created, decayed alike: a new item stands before all that nobody engaged for a while, and items without
engagements stand newest first. All of it decays at one rate, so that the order of two items changes only when one is
engaged: time alone moves nobody, and the writer touches only what an event touches. These impacts are relative to a
landmark, a whole number of half-lives, which moves in strides with stream time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer import worth_kernels
from indexer.counters import EPOCH_HALF_LIVES, CounterRows
from schemas.config import RetrievalConfig
from schemas.store import StoreMeta, Totals

I64 = npt.NDArray[np.int64]

STRIDE: Final = 32
"""Half-lives between two landmarks; float32 holds 127 on either side of one."""
_SHARE: Final = 64
"""Of the shortest half-life that a learned prior reads: what it says does not change by more meanwhile."""
_PAID, _FREE = 8, 1 << 14
"""Items that are computed anew for each change, and those for which that costs too little to be counted."""
_STALE: Final = 16
"""Strides after which all is computed anew, however little changed."""


@dataclass(frozen=True, slots=True)
class Order:
    """What decides the order of posting lists.

    Attributes:
        window: which of the half-lives, counted from 0; -1 the last.
        creation: engagements that creation counts like.
        slack: share of a leaf that may come or be engaged before it is sorted again; 0 sorts at once.
    """

    window: int = -1
    creation: float = 1.0
    slack: float = 0.125

    @classmethod
    def of(cls, config: RetrievalConfig) -> Order:
        """As configured."""
        return cls(config.decay, config.order_creation, config.order_slack)


def landmark_at(stream_time_ms: int, half_life_s: int) -> int:
    """The landmark of a window at a stream time, half-lives since 1970."""
    return stream_time_ms // (half_life_s * 1_000 * STRIDE) * STRIDE


def heat_of(rows: CounterRows, window: int, landmark: int) -> npt.NDArray[np.float32]:
    """(n,) engagements of one window as of the landmark; later ones weigh more than 1."""
    shift = rows.epochs[:, window].astype(np.int64) * EPOCH_HALF_LIVES - landmark
    with np.errstate(over="ignore", under="ignore"):
        heat = np.ldexp(rows.decayed[:, window], np.clip(shift, -4_096, 4_096).astype(np.int32))
    return np.minimum(heat, np.finfo(np.float32).max).astype(np.float32)


def impact_of(
    heat: npt.NDArray[np.float32], created_at: I64, creation: float, half_life_s: int, landmark: int
) -> npt.NDArray[np.float64]:
    """(n,) what posting lists are sorted by, descending; of equals the greater ordinal comes first."""
    born = np.exp2(np.clip(created_at / (half_life_s * 1_000.0) - landmark, -1_074, 1_000))
    return heat.astype(np.float64) + creation * born


class Impact:
    """How impacts are computed in one index: by the model's own prior where it has one, else as configured.

    Args:
        order: as configured.
        meta: half-lives, and the model's prior.

    Attributes:
        learned: whether heats are what items are worth by the model's own prior.
        window: else which half-life they count, from 0 up.
        half_life_s: of the window; creation: engagements that creation counts like, 0 where heats say all.
        stride_ms: what a landmark moves by at least, where learned.
    """

    def __init__(self, order: Order, meta: StoreMeta) -> None:
        windows, prior = len(meta.half_lives_s), meta.prior
        self.learned = prior is not None
        self.window = (order.window if order.window < windows else -1) % windows
        self.half_life_s = meta.half_lives_s[self.window]
        self.creation = 0.0 if self.learned else order.creation
        self.stride_ms = 0
        if prior is not None:
            self.stride_ms = max(1, 1_000 * min(meta.half_lives_s[window] for window in prior.windows) // _SHARE)
            self._prior = (
                np.array(meta.half_lives_s) * 1_000.0, np.array(prior.windows), np.array(prior.widths),
                np.array(prior.parameters), prior.temperature,
            )  # fmt: skip

    def as_of(self, totals: Totals) -> int:
        """The landmark of a store's lists."""
        if self.learned and totals.landmark is not None:
            return totals.landmark
        return self._landmark(totals.stream_time_ms)

    def next(self, landmark: int, stream_time_ms: int, changes: int, items: int) -> int:
        """The landmark at a stream time, so many changes after the last one, for so many items."""
        now = self._landmark(stream_time_ms)
        stale = now - landmark >= _STALE * self.stride_ms
        return now if stale or changes * _PAID >= items - _FREE else landmark

    def _landmark(self, stream_time_ms: int) -> int:
        if self.learned:
            return min(stream_time_ms, time.time_ns() // 1_000_000) // self.stride_ms * self.stride_ms
        return landmark_at(stream_time_ms, self.half_life_s)

    def heats(self, rows: CounterRows, created_at: I64, landmark: int) -> npt.NDArray[np.float32]:
        """(n,) heats of n items as of a landmark."""
        if not self.learned:
            return heat_of(rows, self.window, landmark)
        out = np.empty(len(created_at), np.float32)
        worth_kernels.worth(rows.epochs, rows.decayed, rows.last_at, created_at, landmark, *self._prior, out)
        return out
