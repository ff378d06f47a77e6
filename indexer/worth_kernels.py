"""Compiled: what items are worth by a learned prior, see :mod:`model_runtime.prior`, to which it is equal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from indexer.compiling import njit
from schemas import prior

A = Any
_GRID = 2.0**prior.BITS
_SCALE = prior.SCALE
_LIMIT = prior.CARRIED_LIMIT
_UNIT_S = prior.UNIT_S
_EPOCH = 256.0
"""Half-lives, :data:`indexer.counters.EPOCH_HALF_LIVES`."""


@njit(cache=True, nogil=True, inline="always")
def _input(value: float) -> float:
    """log2(1 + value), linear between powers of two, scaled, on the grid."""
    mantissa, exponent = math.frexp(value + 1.0)
    return float(np.rint((exponent - 2 + 2 * mantissa) * _SCALE * _GRID) / _GRID)


@njit(cache=True, nogil=True)
def _through(widths: A, parameters: A, now: A, then: A) -> float:
    """The last layer's one value, of what the first one sees; ``now`` and ``then`` have room for any layer."""
    begin = 0
    for layer in range(widths.shape[0] - 1):
        inputs, outputs = widths[layer], widths[layer + 1]
        last = layer == widths.shape[0] - 2
        bias = begin + inputs * outputs
        for j in range(outputs):
            then[j] = 0.0 if last else parameters[bias + j]
        for i in range(inputs):
            value, weights = now[i], parameters[begin + i * outputs : begin + (i + 1) * outputs]
            for j in range(outputs):
                then[j] += value * weights[j]
        if last:
            return float(then[0])
        for j in range(outputs):
            now[j] = min(max(np.rint(then[j] * _GRID) / _GRID, 0.0), _LIMIT)
        begin = bias + outputs
    return 0.0


@njit(cache=True, nogil=True)
def worth(
    epochs: A,
    decayed: A,
    last_at: A,
    created_at: A,
    moment_ms: int,
    half_lives_ms: A,
    windows: A,
    widths: A,
    parameters: A,
    temperature: float,
    out: A,
) -> None:
    """Of n items at a moment, or at their last engagement where it is later."""
    now, then = np.empty(widths.max()), np.empty(widths.max())
    for i in range(out.shape[0]):
        at_ms = max(moment_ms, last_at[i])
        for k in range(windows.shape[0]):
            window = windows[k]
            count = decayed[i, window]
            if count > 0.0:
                left = epochs[i, window] * _EPOCH - at_ms / half_lives_ms[window]
                count *= math.exp2(min(max(left, -1_074.0), 0.0))
            now[k] = _input(count)
        now[windows.shape[0]] = _input(max(at_ms - created_at[i], 0) / 1_000.0 / _UNIT_S)
        out[i] = temperature * _through(widths, parameters, now, then)
