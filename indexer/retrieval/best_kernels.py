"""Compiled: the best of many scores. One thread, no GIL.

A *key* is a uint64 that orders results: the score in its upper half, the greater first; below it what tells them apart.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from indexer.half import as_float

A = Any
ORDINAL = np.uint64(0xFFFFFFFF)
_SAMPLE = 1024


@njit(cache=True, nogil=True)
def key_of(bits: A, ordinal: A) -> A:
    """Key of a score, given as bits, and an ordinal: of equal scores the lesser ordinal is the greater key."""
    flipped = ~bits if bits & np.uint32(0x80000000) else bits | np.uint32(0x80000000)
    return (np.uint64(flipped) << np.uint64(32)) | (ORDINAL - np.uint64(ordinal))


@njit(cache=True, nogil=True)
def score_bits(key: A) -> A:
    """Score of a key, as bits."""
    flipped = np.uint32(key >> np.uint64(32))
    return np.uint32(flipped & np.uint32(0x7FFFFFFF) if flipped & np.uint32(0x80000000) else ~flipped)


@njit(cache=True, nogil=True)
def greatest(keys: A, n: int, k: int) -> None:
    """Bring the k greatest of the first n keys to the front, the least of them to place k - 1; 0 < k <= n."""
    low, high = 0, n - 1
    while low < high:
        a, b, c = keys[low], keys[(low + high) >> 1], keys[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while keys[i] > pivot:
                i += 1
            while keys[j] < pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            return


@njit(cache=True, nogil=True)
def find(table: A, mask: int, generation: int, ordinal: int) -> int:
    """Slot of the table, of which the first ``mask + 1`` are used, that holds the ordinal, or where it would go."""
    at = (ordinal * 0x9E3779B1 >> 7) & mask
    while table[at, 0] == generation and table[at, 1] != ordinal:
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True)
def score_of(key: A) -> A:
    """Score of a key."""
    return as_float(score_bits(key))


@njit(cache=True, nogil=True)
def sort(keys: A, spare: A, n: int) -> None:
    """Sort the first n keys, the greatest score first, of equals in the order they are in; ``spare`` is as large."""
    counts = np.zeros((4, 256), np.int64)
    for at in range(n):
        key = ~keys[at]
        for digit in range(4):
            counts[digit, (key >> np.uint64(32 + 8 * digit)) & np.uint64(255)] += 1
    for digit in range(4):
        shift, begin = np.uint64(32 + 8 * digit), 0
        if n and counts[digit, (~keys[0] >> shift) & np.uint64(255)] == n:
            continue
        for value in range(256):
            begin, counts[digit, value] = begin + counts[digit, value], begin
        for at in range(n):
            value = (~keys[at] >> shift) & np.uint64(255)
            spare[counts[digit, value]] = keys[at]
            counts[digit, value] += 1
        keys[:n] = spare[:n]


@njit(cache=True, nogil=True)
def index_of(key: A) -> A:
    """Which of the members scored a key is of."""
    return np.int64((key & ORDINAL) >> np.uint64(1))


@njit(cache=True, nogil=True)
def guess(score_bits: A, total: int, need: int, keys: A) -> A:
    """A score that somewhat more than ``need`` of the first ``total`` probably reach, from a sample."""
    n = min(total, _SAMPLE)
    expected = n * need / max(1, total)
    rank = np.int64(1.25 * expected + 3 * math.sqrt(expected)) + 2
    if rank >= n:
        return np.float32(-np.inf)
    stride = total // n
    for at in range(n):
        keys[at] = key_of(score_bits[at * stride], 0)
    greatest(keys, n, rank)
    return score_of(keys[rank - 1])
