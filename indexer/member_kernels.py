"""Compiled steps on the arrays of :class:`indexer.members.MemberPool`; one thread, without the GIL.

``row`` is leaf * facets + facet. ``place`` is (items, facets) uint32: where in its leaf each item stands.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

A = Any
GONE = np.uint32(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def append(
    start: A,
    length: A,
    touched: A,
    pool_ordinal: A,
    pool_heat: A,
    pool_vector: A,
    place: A,
    rows: A,
    ordinals: A,
    vectors: A,
    heats: A,
) -> None:
    """Put members at the end of their rows, in the order given; there is room."""
    facets = place.shape[1]
    for i in range(rows.shape[0]):
        row = rows[i]
        at = start[row] + length[row]
        pool_ordinal[at] = ordinals[i]
        pool_heat[at] = heats[i]
        for j in range(vectors.shape[1]):
            pool_vector[at, j] = vectors[i, j]
        place[ordinals[i], row % facets] = length[row]
        length[row] += 1
        touched[row] += 1


@njit(cache=True, nogil=True)
def remove(
    start: A, length: A, ordered: A, pool_ordinal: A, pool_heat: A, pool_vector: A, place: A, rows: A, ordinals: A
) -> None:
    """Take members out of their rows; the others keep their order."""
    facets = place.shape[1]
    for i in range(rows.shape[0]):
        pool_ordinal[start[rows[i]] + place[ordinals[i], rows[i] % facets]] = GONE
    for i in range(rows.shape[0]):
        row = rows[i]
        begin = start[row]
        first = place[ordinals[i], row % facets]
        if first >= length[row] or pool_ordinal[begin + first] != GONE:
            continue  # squeezed together with an earlier one
        first = 0
        while pool_ordinal[begin + first] != GONE:
            first += 1
        kept, in_order = first, min(first, ordered[row])
        for at in range(first, length[row]):
            ordinal = pool_ordinal[begin + at]
            if ordinal == GONE:
                continue
            pool_ordinal[begin + kept] = ordinal
            pool_heat[begin + kept] = pool_heat[begin + at]
            for j in range(pool_vector.shape[1]):
                pool_vector[begin + kept, j] = pool_vector[begin + at, j]
            place[ordinal, row % facets] = kept
            kept += 1
            if at < ordered[row]:
                in_order += 1
        for at in range(kept, length[row]):
            pool_ordinal[begin + at] = 0  # no GONE stays behind to be met again
        length[row] = kept
        ordered[row] = in_order


@njit(cache=True, nogil=True)
def engage(start: A, touched: A, pool_heat: A, place: A, leaf: A, ordinals: A, heats: A) -> None:
    """New heats of items that are live."""
    facets = place.shape[1]
    for i in range(ordinals.shape[0]):
        ordinal = ordinals[i]
        for facet in range(facets):
            row = np.int64(leaf[ordinal, facet]) * facets + facet
            pool_heat[start[row] + place[ordinal, facet]] = heats[i]
            touched[row] += 1


@njit(cache=True, nogil=True)
def embeddings(start: A, place: A, pool_vector: A, leaf: A, live: A, ordinals: A, out: A) -> None:
    """Embeddings of n items in all facets, (n, F, d); those that are not live are left out."""
    facets = place.shape[1]
    for i in range(ordinals.shape[0]):
        if not live[i]:
            continue
        ordinal = ordinals[i]
        for facet in range(facets):
            at = start[np.int64(leaf[ordinal, facet]) * facets + facet] + place[ordinal, facet]
            for j in range(pool_vector.shape[1]):
                out[i, facet, j] = pool_vector[at, j]


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
    """Sort rows by impact, the greatest first, of equals the greater ordinal."""
    facets, dim = place.shape[1], pool_vector.shape[1]
    for i in range(rows.shape[0]):
        row = rows[i]
        begin, n = start[row], length[row]
        ordered[row], touched[row] = n, 0
        impact = np.empty(n, np.float64)
        in_order = True
        for at in range(n):
            ordinal = pool_ordinal[begin + at]
            age = min(max(created_at[ordinal] / half_life_ms - landmark, -1_074.0), 1_000.0)
            impact[at] = np.float64(pool_heat[begin + at]) + creation * math.exp2(age)
            if at and (
                impact[at] > impact[at - 1] or (impact[at] == impact[at - 1] and ordinal > pool_ordinal[begin + at - 1])
            ):
                in_order = False
        if in_order:
            continue
        order = np.argsort(-impact)
        first = 0
        while first < n:  # equals by ordinal, descending
            last = first + 1
            while last < n and impact[order[last]] == impact[order[first]]:
                last += 1
            if last - first > 1:
                names = np.empty(last - first, np.int64)
                for k in range(last - first):
                    names[k] = -np.int64(pool_ordinal[begin + order[first + k]])
                tied = order[first:last].copy()
                by_name = np.argsort(names)
                for k in range(last - first):
                    order[first + k] = tied[by_name[k]]
            first = last
        ordinals = pool_ordinal[begin : begin + n].copy()
        heats = pool_heat[begin : begin + n].copy()
        vectors = pool_vector[begin : begin + n].copy()
        for at in range(n):
            old = order[at]
            if old == at:
                continue
            pool_ordinal[begin + at] = ordinals[old]
            pool_heat[begin + at] = heats[old]
            for j in range(dim):
                pool_vector[begin + at, j] = vectors[old, j]
            place[ordinals[old], row % facets] = at


@njit(cache=True, nogil=True)
def reheat(start: A, length: A, pool_ordinal: A, pool_heat: A, heats: A) -> None:
    """Every member's heat anew, from (items,) float32."""
    for row in range(start.shape[0]):
        for at in range(start[row], start[row] + length[row]):
            pool_heat[at] = heats[pool_ordinal[at]]


@njit(cache=True, nogil=True)
def set_places(start: A, length: A, pool_ordinal: A, place: A) -> None:
    """Where each member stands, after the pool was built at once."""
    facets = place.shape[1]
    for row in range(start.shape[0]):
        for at in range(length[row]):
            place[pool_ordinal[start[row] + at], row % facets] = at
