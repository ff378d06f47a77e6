"""Posting lists put in order, compiled: most members are in order already, and only those that are not are sorted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from indexer.compiling import njit

A = Any


@njit(cache=True, nogil=True, inline="always")
def _before(impact: A, ordinal: A, begin: int, one: int, other: int) -> bool:
    """Whether one member comes before another: the greater impact, of equals the greater ordinal."""
    if impact[one] != impact[other]:
        return bool(impact[one] > impact[other])
    return bool(ordinal[begin + one] > ordinal[begin + other])


@njit(cache=True, nogil=True)
def _sort_loose(impact: A, ordinal: A, begin: int, loose: A, spare: A, count: int) -> None:
    """Merge sort of ``loose[:count]``; what came newest last is turned round first."""
    for k in range(count // 2):
        loose[k], loose[count - 1 - k] = loose[count - 1 - k], loose[k]
    width = 1
    while width < count:
        for low in range(0, count, 2 * width):
            middle, high = min(low + width, count), min(low + 2 * width, count)
            if middle >= high or not _before(impact, ordinal, begin, loose[middle], loose[middle - 1]):
                continue
            for k in range(low, middle):
                spare[k] = loose[k]
            left, right, to = low, middle, low
            while left < middle and right < high:
                if _before(impact, ordinal, begin, loose[right], spare[left]):
                    loose[to] = loose[right]
                    right += 1
                else:
                    loose[to] = spare[left]
                    left += 1
                to += 1
            while left < middle:
                loose[to] = spare[left]
                left, to = left + 1, to + 1
        width *= 2


@njit(cache=True, nogil=True)
def sort(
    start: A,
    length: A,
    ordered: A,
    touched: A,
    pool_ordinal: A,
    pool_heat: A,
    pool_vector: A,
    place: A,
    created_at: A,
    rows: A,
    creation: float,
    half_life_ms: float,
    landmark: float,
) -> None:
    """Sort rows by impact, the greatest first, of equals the greater ordinal.

    Members that stand in order among themselves stay; the others are sorted apart and merged in.
    """
    facets, dim = place.shape[1], pool_vector.shape[1]
    most = 0
    for i in range(rows.shape[0]):
        most = max(most, length[rows[i]])
    impact = np.empty(most, np.float64)
    kept, loose, order = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    held = np.empty(dim, pool_vector.dtype)
    for i in range(rows.shape[0]):
        row = rows[i]
        begin, n = start[row], length[row]
        ordered[row], touched[row] = n, 0
        stay = out = 0
        for at in range(n):
            age = min(max(created_at[pool_ordinal[begin + at]] / half_life_ms - landmark, -1_074.0), 1_000.0)
            impact[at] = np.float64(pool_heat[begin + at]) + creation * math.exp2(age)
            if stay and _before(impact, pool_ordinal, begin, at, kept[stay - 1]):
                loose[out] = at
                out += 1
            else:
                kept[stay] = at
                stay += 1
        if not out:
            continue
        _sort_loose(impact, pool_ordinal, begin, loose, order, out)
        left = right = 0
        for at in range(n):
            if right >= out or (left < stay and _before(impact, pool_ordinal, begin, kept[left], loose[right])):
                order[at] = kept[left]
                left += 1
            else:
                order[at] = loose[right]
                right += 1
        for first in range(n):  # along each cycle, so that every member moves once
            if order[first] == first:
                continue
            ordinal, heat = pool_ordinal[begin + first], pool_heat[begin + first]
            for j in range(dim):
                held[j] = pool_vector[begin + first, j]
            hole = first
            while order[hole] != first:
                source = order[hole]
                pool_ordinal[begin + hole] = pool_ordinal[begin + source]
                pool_heat[begin + hole] = pool_heat[begin + source]
                for j in range(dim):
                    pool_vector[begin + hole, j] = pool_vector[begin + source, j]
                place[pool_ordinal[begin + hole], row % facets] = hole
                order[hole] = hole
                hole = source
            pool_ordinal[begin + hole], pool_heat[begin + hole] = ordinal, heat
            for j in range(dim):
                pool_vector[begin + hole, j] = held[j]
            place[ordinal, row % facets] = hole
            order[hole] = hole
