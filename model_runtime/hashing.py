"""Hashes of many substrings of one code-point array at once, as uint64 arithmetic that wraps modulo 2^64.

A string c_0 .. c_(n-1) has the polynomial hash sum_i (c_i + 1) B^i with an odd base B. With prefix sums the
hash of any span costs two look-ups and one product: B is odd, so it has an inverse and the span can be moved
to position 0. A span's hash therefore depends on its characters alone, not on where in which batch it stands.
The polynomial's low bits are weak (their parity is a sum of parities); :func:`splitmix64`, a bijection, mends
that before bits are dropped.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

U64Array = npt.NDArray[np.uint64]

_BASE: Final = 0x9E3779B97F4A7C15 | 1
_INVERSE: Final = pow(_BASE, -1, 1 << 64)
BASE: Final = np.uint64(_BASE)
JOIN: Final = np.uint64(0xD6E8FEB86659FD93)  # odd; combines the hashes of neighbouring words, order matters

_MIX1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX2: Final = np.uint64(0x94D049BB133111EB)
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(values: U64Array) -> U64Array:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit over all bits.

    Args:
        values: uint64, any shape; left as it is.
    """
    mixed = values + _GOLDEN
    shifted = mixed >> np.uint64(30)
    mixed ^= shifted
    mixed *= _MIX1
    np.right_shift(mixed, np.uint64(27), out=shifted)
    mixed ^= shifted
    mixed *= _MIX2
    np.right_shift(mixed, np.uint64(31), out=shifted)
    mixed ^= shifted
    return mixed


def salt(*parts: int) -> np.uint64:
    """A constant that keeps the hashes of one kind of token apart from those of another."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = splitmix64(state ^ np.uint64(part))
    return np.uint64(state[0])


@cache
def _powers(log2_length: int) -> tuple[U64Array, U64Array]:
    """B^i and B^-i for i < 2^log2_length."""
    length = 1 << log2_length
    forward, backward = np.full(length, BASE), np.full(length, np.uint64(_INVERSE))
    forward[0] = backward[0] = 1
    return np.cumprod(forward, dtype=np.uint64), np.cumprod(backward, dtype=np.uint64)


def prefix_hashes(code_points: npt.NDArray[np.uint32]) -> U64Array:
    """Prefix sums of the polynomial: (n + 1,) for (n,) code points."""
    length = len(code_points)
    terms = code_points.astype(np.uint64)
    terms += np.uint64(1)  # so that leading NULs count
    terms *= _powers(max(length, 1).bit_length())[0][:length]
    prefix = np.zeros(length + 1, np.uint64)
    np.cumsum(terms, out=prefix[1:])
    return prefix


def span_hashes(prefix: U64Array, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> U64Array:
    """Hash of each span [start, end), independent of its position: (k,) uint64.

    Args:
        prefix: (n + 1,) from :func:`prefix_hashes`.
        starts: (k,) first position of each span.
        ends: (k,) position after each span, between its start and n.
    """
    hashes = prefix[ends]
    hashes -= prefix[starts]
    hashes *= _powers(len(prefix).bit_length())[1][starts]
    return hashes


def buckets_of(hashes: U64Array, of_kind: np.uint64, buckets: int) -> npt.NDArray[np.int32]:
    """Bucket of each hash for one kind of token: (k,) int32 in [0, buckets).

    Takes the upper 32 bits times ``buckets`` / 2^32 (Lemire 2019): as uniform as a remainder, without a
    division.
    """
    mixed = splitmix64(hashes ^ of_kind)
    mixed >>= np.uint64(32)
    mixed *= np.uint64(buckets)
    mixed >>= np.uint64(32)
    return mixed.astype(np.int32)
