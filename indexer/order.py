"""In which order a posting list is kept: what is worth most whoever asks comes first, so that a scan may stop early.

The impact of an item is its decayed engagements of one window plus ``creation`` engagements that it got for being
created, decayed alike: a new item stands before all that nobody engaged for a while, and items without engagements
stand newest first. All of it decays at one rate, so that the order of two items changes only when one is engaged: time
alone moves nobody, and the writer touches only what an event touches.

Impacts are kept relative to a landmark, a whole number of half-lives, which moves in strides with stream time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.counters import EPOCH_HALF_LIVES, CounterRows
from schemas.config import RetrievalConfig

I64 = npt.NDArray[np.int64]

STRIDE: Final = 32
"""Half-lives between two landmarks; float32 holds 127 on either side of one."""


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
