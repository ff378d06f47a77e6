"""Engagement counters with exponential time decay, exact however the stream is cut into batches.

Forward decay (Cormode et al., 2009): an engagement at time t weighs ``2 ** ((t - landmark) / half_life)``, so nothing
is rewritten as time passes; a reader divides by the weight of now. The landmark is kept per item and window as a whole
number of epochs of ``EPOCH_HALF_LIVES`` half-lives. When it advances, the old sum is scaled by a power of two, which is
exact in floating point; weights come from a table of ``STEPS`` steps a half-life, so a weight does not depend on where
in an array it was computed. Sums are accumulated in stream order. Hence: same events, same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

EPOCH_HALF_LIVES: Final = 256
STEPS: Final = 4_096

_TABLE: Final = np.array([2.0 ** (step / STEPS) for step in range(STEPS)])

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CounterRows:
    """Counters of n items.

    Attributes:
        counts: (n, K) uint32, engagements of each kind.
        epochs: (n, W) int32, landmark of each window.
        decayed: (n, W) float64, sum of weights relative to the landmark.
        value_sum: (n,) float64, sum of engagement values.
        last_at: (n,) int64, latest occurred_at, epoch milliseconds.
    """

    counts: npt.NDArray[np.uint32]
    epochs: npt.NDArray[np.int32]
    decayed: F64
    value_sum: F64
    last_at: I64


def decay_steps(times_ms: I64, half_lives_s: tuple[int, ...]) -> I64:
    """(n, W) whole steps since 1970 of each time in each window."""
    return (times_ms[:, None] * STEPS) // (np.array(half_lives_s, np.int64) * 1_000)[None, :]


def add_engagements(
    rows: CounterRows, target: I64, kinds: I64, times_ms: I64, values: F64, half_lives_s: tuple[int, ...]
) -> CounterRows:
    """Counters after m engagements, in their order; the input is left as it is.

    Args:
        rows: counters of n items before.
        target: (m,) row of each engagement's item.
        kinds: (m,) column of each engagement's kind, below K.
        times_ms: (m,) occurred_at, epoch milliseconds.
        values: (m,) engagement values, NaN where there is none.
        half_lives_s: length W.
    """
    counts, decayed = rows.counts.copy(), rows.decayed.copy()
    value_sum, last_at = rows.value_sum.copy(), rows.last_at.copy()
    np.add.at(counts, (target, kinds), np.uint32(1))
    np.maximum.at(last_at, target, times_ms)
    given = ~np.isnan(values)
    np.add.at(value_sum, target[given], values[given])

    steps = decay_steps(times_ms, half_lives_s)
    epochs = rows.epochs.astype(np.int64)
    event_epochs = steps // (STEPS * EPOCH_HALF_LIVES)
    for window in range(len(half_lives_s)):
        landmark = epochs[:, window].copy()
        np.maximum.at(landmark, target, event_epochs[:, window])
        advanced = (landmark - epochs[:, window]) * EPOCH_HALF_LIVES
        sums = np.ldexp(decayed[:, window], -np.minimum(advanced, 4_096))
        since = steps[:, window] - landmark[target] * (STEPS * EPOCH_HALF_LIVES)
        weights = np.ldexp(_TABLE[since % STEPS], np.maximum(since // STEPS, -4_096))
        np.add.at(sums, target, weights)
        decayed[:, window], epochs[:, window] = sums, landmark
    return CounterRows(counts, epochs.astype(np.int32), decayed, value_sum, last_at)


def decayed_counts(rows: CounterRows, now_ms: int, half_lives_s: tuple[int, ...]) -> F64:
    """(n, W) engagements, each weighing ``2 ** (-age / half_life)`` at ``now_ms``.

    For an item with later engagements the time is that of its last one: weights above 1 would drown all else.
    """
    at_ms = np.maximum(rows.last_at, now_ms)
    now = at_ms[:, None] / (np.array(half_lives_s) * 1_000.0)[None, :]
    exponent = rows.epochs * float(EPOCH_HALF_LIVES) - now
    return rows.decayed * np.exp2(np.clip(exponent, -1_074, 0.0))


def counters_at(decayed: F64, now_ms: int, half_lives_s: tuple[int, ...]) -> CounterRows:
    """Counters that :func:`decayed_counts` reads as ``decayed`` (n, W) at ``now_ms``; without kinds and values."""
    half_lives = now_ms / (np.array(half_lives_s) * 1_000.0)
    epochs = np.floor(half_lives / EPOCH_HALF_LIVES)
    n = len(decayed)
    return CounterRows(
        np.zeros((n, 0), np.uint32),
        np.tile(epochs.astype(np.int32), (n, 1)),
        decayed * np.exp2(half_lives - epochs * EPOCH_HALF_LIVES),
        np.zeros(n),
        np.full(n, now_ms),
    )
