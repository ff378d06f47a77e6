"""Compiled: the best of many scores. One thread, no GIL.

A *key* is a uint64 that orders results: the score in its upper half, the greater first; below it what tells them apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.compiling import njit
from indexer.half import as_bits, as_float

A = Any
LOWER = np.uint64(0xFFFFFFFF)
_UPPER = np.uint64(0xFFFFFFFF00000000)
_HALVINGS = 32
_FEW = 24
_TOGETHER = 32
"""Scores that are passed over at once where none of them reaches the least."""


@njit(cache=True, nogil=True)
def key_of(score: A, below: A) -> A:
    """Key of a float32 score, and of what stands below it."""
    bits = as_bits(score)
    flipped = ~bits if bits & np.uint32(0x80000000) else bits | np.uint32(0x80000000)
    return (np.uint64(flipped) << np.uint64(32)) | np.uint64(below)


@njit(cache=True, nogil=True)
def ranked(score: A, ordinal: A) -> A:
    """Key of a result: of equal scores the lesser ordinal is the greater key."""
    return key_of(score, LOWER - np.uint64(ordinal))


@njit(cache=True, nogil=True)
def score_of(key: A) -> A:
    """Score of a key."""
    flipped = np.uint32(key >> np.uint64(32))
    return as_float(np.uint32(flipped & np.uint32(0x7FFFFFFF) if flipped & np.uint32(0x80000000) else ~flipped))


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
def _reaching(scores: A, least: A) -> A:
    """How many scores reach the least; sixteen are compared at once."""
    count = np.int32(0)
    for i in range(scores.shape[0]):
        count += np.int32(scores[i] >= least)
    return count


@njit(cache=True, nogil=True)
def _in_order(bits: A) -> A:
    """Bits of a float32 as an int32 in the order of the numbers, and back."""
    return np.int32(bits) ^ ((np.int32(bits) >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(cache=True, nogil=True)
def _range(scores: A) -> A:
    """The least and the greatest; as integers, of which sixteen are compared at once."""
    least = most = _in_order(as_bits(scores[0]))
    for i in range(scores.shape[0]):
        number = _in_order(as_bits(scores[i]))
        least, most = min(least, number), max(most, number)
    return as_float(np.uint32(_in_order(least))), as_float(np.uint32(_in_order(most)))


@njit(cache=True, nogil=True)
def floor_of(scores: A, need: int, spare: int) -> A:
    """A score that at least ``need`` of the scores reach, and, unless many are equal, ``spare`` more at most.

    By halving: counting is so fast that a dozen passes cost less than one that keeps the best.
    """
    if scores.shape[0] <= need + spare:
        return np.float32(-np.inf)
    low, high = _range(scores)
    for _ in range(_HALVINGS):
        middle = low + (high - low) * np.float32(0.5)
        if not low < middle < high:
            break
        count = _reaching(scores, middle)
        if count < need:
            high = middle
        else:
            low = middle
            if count <= need + spare:
                break
    return low


@njit(cache=True, nogil=True)
def reach(scores: A, begin: int, end: int, least: A, picked: A, n: int) -> int:
    """Indices from begin to before end of scores that reach the least, ascending, from ``picked[n]`` on; new n."""
    for low in range(begin, end, _TOGETHER):
        high = min(low + _TOGETHER, end)
        some = scores[low:high]
        if not _reaching(some, least):
            continue
        for i in range(some.shape[0]):
            picked[n] = low + i
            n += some[i] >= least
    return n


@njit(cache=True, nogil=True)
def best(scores: A, begin: int, end: int, need: int, ordinal: A, at: A, keys: A, picked: A) -> A:
    """The ``need`` best of scores[begin:end], all if there are fewer; members ``at`` positions of ``ordinal``.

    Returns:
        (n, limit): ``picked[:n]`` are indices, ascending, among which are those wanted: the ones of which the
        :func:`ranked` key reaches the limit.
    """
    if end - begin <= need:
        for i in range(begin, end):
            picked[i - begin] = i
        return end - begin, np.uint64(0)
    least = floor_of(scores[begin:end], need, 0)  # counting on costs less than picking out of some more
    n = reach(scores, begin, end, least, picked, 0)
    if n <= need:
        return n, key_of(least, 0)
    for j in range(n):
        keys[j] = ranked(scores[picked[j]], ordinal[at[picked[j]]])
    greatest(keys, n, need)
    return n, keys[need - 1]


@njit(cache=True, nogil=True)
def find(table: A, mask: int, generation: int, ordinal: int) -> int:
    """Slot of the table, of which the first ``mask + 1`` are used, that holds the ordinal, or where it would go."""
    at = (ordinal * 0x9E3779B1 >> 7) & mask
    while table[at, 0] == generation and table[at, 1] != ordinal:
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True)
def sort(keys: A, spare: A, n: int) -> None:
    """Sort the first n keys, the greatest score first, of equals in the order they are in; ``spare`` is as large."""
    counts = np.zeros((4, 256), np.int32)
    for at in range(n):
        key = ~keys[at]
        for digit in range(4):
            counts[digit, (key >> np.uint64(32 + 8 * digit)) & np.uint64(255)] += 1
    these, others, moved = keys, spare, False
    for digit in range(4):
        shift, ends, begin = np.uint64(32 + 8 * digit), counts[digit], np.int32(0)
        if n and ends[(~keys[0] >> shift) & np.uint64(255)] == n:
            continue
        for value in range(256):
            begin, ends[value] = begin + ends[value], begin
        for at in range(n):
            value = (~these[at] >> shift) & np.uint64(255)
            others[ends[value]] = these[at]
            ends[value] += 1
        these, others = others, these
        moved = not moved
    if moved:
        keys[:n] = spare[:n]


@njit(cache=True, nogil=True)
def order_equals(keys: A, n: int, ordinals: A) -> None:
    """Of equal scores among the first n sorted keys the lesser ordinal first, then what came first.

    ``ordinals`` are by the lower half of a key, of which the lowest bit does not count.
    """
    first = 0
    for at in range(1, n + 1):
        if at < n and keys[at] & _UPPER == keys[first] & _UPPER:
            continue
        if at - first > _FEW:  # as many identical items may be
            names = np.empty(at - first, np.uint64)
            for i in range(first, at):
                names[i - first] = (np.uint64(ordinals[index_of(keys[i])]) << np.uint64(32)) | (keys[i] & LOWER)
            names.sort()
            for i in range(first, at):
                keys[i] = (keys[i] & _UPPER) | (names[i - first] & LOWER)
        else:
            for i in range(first + 1, at):
                to = i
                while to > first and ordinals[index_of(keys[to - 1])] > ordinals[index_of(keys[to])]:
                    keys[to - 1], keys[to] = keys[to], keys[to - 1]
                    to -= 1
        first = at


@njit(cache=True, nogil=True)
def index_of(key: A) -> A:
    """What the lower half of a key says, without its lowest bit."""
    return np.int64((key & LOWER) >> np.uint64(1))
