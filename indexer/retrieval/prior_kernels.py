"""Compiled: what a member is worth whoever asks. One thread, no GIL."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from indexer.compiling import njit
from indexer.half import as_bits, as_float

A = Any


@njit(cache=True, nogil=True, error_model="numpy")  # else a check of each division keeps loops scalar
def log1p(x: A) -> A:
    """Float32 log(1 + x) for x >= 0, to 3e-7 of the greater of it and 1; without calls, so that loops of it vectorise.

    1 + x is 2^e * m with m in [1/sqrt 2, sqrt 2); log m = 2 artanh s, s = (m - 1) / (m + 1), by its series.
    """
    y = np.float32(1) + min(x, np.float32(1e38))
    bits = as_bits(y) - np.uint32(0x3F3504F3)
    exponent = np.float32(np.int32(bits) >> np.int32(23))
    m = as_float((bits & np.uint32(0x007FFFFF)) + np.uint32(0x3F3504F3))
    s = (m - np.float32(1)) / (m + np.float32(1))
    t = s * s
    series = np.float32(2 / 9) * t + np.float32(2 / 7)
    series = series * t + np.float32(2 / 5)
    series = series * t + np.float32(2 / 3)
    series = series * t + np.float32(2)
    return exponent * np.float32(0.6931471805599453) + s * series


@njit(cache=True, nogil=True)
def _kept(landmark: int, when_ms: float, half_life_ms: float) -> A:
    """What is left at a time of one engagement at the landmark."""
    return np.float32(2.0 ** min(max(landmark - when_ms / half_life_ms, -1_000.0), 100.0))


@njit(cache=True, nogil=True)
def priors(pool: A, how: A, at: A, begin: int, count: int, out: A) -> None:
    """What the members at positions ``at[begin : begin + count]`` are worth, weighted, from ``out[0]`` on.

    By the model's own prior that is their heat; else it is engagement and freshness, as configured. Engagements then
    come from the pool's heats. Where these are of another window, or some engagement is later than now (``how.exact``),
    they are counted from the items' own counters; else that would give the same number.
    """
    if how.learned_weight:
        members, some, weight = at[begin : begin + count], out[:count], np.float32(how.learned_weight)
        for i in range(members.shape[0]):
            some[i] = weight * pool.heat[members[i]]
        return
    out[:count] = 0
    weight = np.float32(how.engagement_weight)
    if how.engagement_weight and how.exact:
        for i in range(count):
            ordinal = pool.ordinal[at[begin + i]]
            shift = np.int64(pool.epochs[ordinal, how.window]) * 256 - how.landmark
            heat = np.float32(min(math.ldexp(pool.decayed[ordinal, how.window], shift), 3.4028234e38))
            when = max(how.now_ms, np.float64(pool.last_at[ordinal]))
            out[i] = weight * log1p(heat * _kept(how.landmark, when, how.half_life_ms))
    elif how.engagement_weight:
        factor = _kept(how.landmark, how.now_ms, how.half_life_ms)
        members, some = at[begin : begin + count], out[:count]
        for i in range(members.shape[0]):
            some[i] = pool.heat[members[i]]
        for i in range(some.shape[0]):  # apart, as what is gathered from afar keeps a loop from being vectorised
            some[i] = weight * log1p(some[i] * factor)
    if how.freshness_weight:
        for i in range(count):
            age = max(0.0, how.now_ms - pool.created_at[pool.ordinal[at[begin + i]]])
            out[i] += np.float32(how.freshness_weight * 2.0 ** (-age / how.freshness_half_life_ms))
