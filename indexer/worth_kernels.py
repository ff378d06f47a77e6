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
_TOGETHER = 32
"""Items that go through a layer at once."""
_EPOCH = 256.0
"""Half-lives, :data:`indexer.counters.EPOCH_HALF_LIVES`."""


@njit(cache=True, nogil=True, inline="always")
def _input(value: float) -> float:
    """log2(1 + value), linear between powers of two, scaled, on the grid."""
    mantissa, exponent = math.frexp(value + 1.0)
    return float(np.rint((exponent - 2 + 2 * mantissa) * _SCALE * _GRID) / _GRID)


@njit(cache=True, nogil=True)
def _layer(inputs: A, weights: A, outputs: A) -> None:
    """Add (inputs, together) times (inputs, outputs) to (outputs, together)."""
    for j in range(outputs.shape[0]):
        to = outputs[j]
        for i in range(inputs.shape[0]):
            weight, some = weights[i * outputs.shape[0] + j], inputs[i]
            for b in range(_TOGETHER):
                to[b] += some[b] * weight


@njit(cache=True, nogil=True)
def _through(widths: A, parameters: A, now: A, then: A) -> A:
    """(together,) what the last layer gives of what the first one sees; both have room for any layer."""
    begin, layers = 0, widths.shape[0] - 1
    for layer in range(layers):
        inputs, outputs = widths[layer], widths[layer + 1]
        bias = begin + inputs * outputs
        for j in range(outputs):
            then[j, :] = 0.0 if layer == layers - 1 else parameters[bias + j]
        _layer(now[:inputs], parameters[begin:bias], then[:outputs])
        begin = bias + outputs
        if layer == layers - 1:
            break
        for j in range(outputs):
            some, to = then[j], now[j]
            for b in range(_TOGETHER):
                to[b] = min(max(np.rint(some[b] * _GRID) / _GRID, 0.0), _LIMIT)
    return then[0]


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
    now, then = np.zeros((widths.max(), _TOGETHER)), np.zeros((widths.max(), _TOGETHER))
    for begin in range(0, out.shape[0], _TOGETHER):
        end = min(begin + _TOGETHER, out.shape[0])
        for i in range(begin, end):
            at_ms = max(moment_ms, last_at[i])
            for k in range(windows.shape[0]):
                window = windows[k]
                count = decayed[i, window]
                if count > 0.0:
                    left = epochs[i, window] * _EPOCH - at_ms / half_lives_ms[window]
                    count *= math.exp2(min(max(left, -1_074.0), 0.0))
                now[k, i - begin] = _input(count)
            now[windows.shape[0], i - begin] = _input(max(at_ms - created_at[i], 0) / 1_000.0 / _UNIT_S)
        found = _through(widths, parameters, now, then)
        for i in range(begin, end):
            out[i] = temperature * found[i - begin]
