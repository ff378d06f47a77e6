"""Compiled steps on the arrays of :class:`indexer.members.MemberPool`; one thread, without the GIL.

``row`` is leaf * facets + facet. ``place`` is (items, facets) uint32: where in its leaf each item stands.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.compiling import njit

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
def reheat(start: A, length: A, pool_ordinal: A, pool_heat: A, heats: A) -> None:
    """Every member's heat anew, from (items,) float32."""
    for row in range(start.shape[0]):
        for at in range(start[row], start[row] + length[row]):
            pool_heat[at] = heats[pool_ordinal[at]]


@njit(cache=True, nogil=True)
def count(live: A, leaf: A, lengths: A) -> None:
    """Add to (rows,) how many of (items,) live ones are in each; ``leaf`` is (items, facets), of rows there are."""
    facets = leaf.shape[1]
    for ordinal in range(live.shape[0]):
        if live[ordinal]:
            for facet in range(facets):
                lengths[np.int64(leaf[ordinal, facet]) * facets + facet] += 1


@njit(cache=True, nogil=True)
def fill(start: A, length: A, pool_ordinal: A, pool_heat: A, place: A, live: A, leaf: A, heats: A) -> None:
    """Put live items into empty rows that have room, the last one first; all but ``live`` as in :func:`count`."""
    facets = leaf.shape[1]
    for ordinal in range(live.shape[0] - 1, -1, -1):
        if live[ordinal]:
            for facet in range(facets):
                row = np.int64(leaf[ordinal, facet]) * facets + facet
                at = start[row] + length[row]
                pool_ordinal[at], pool_heat[at] = ordinal, heats[ordinal]
                place[ordinal, facet] = length[row]
                length[row] += 1


@njit(cache=True, nogil=True)
def set_vectors(
    start: A, length: A, pool_ordinal: A, pool_vector: A, place: A, leaf: A, ordinals: A, vectors: A
) -> None:
    """Embeddings (n, F, d) of items to where they stand; those of items that stand nowhere are passed over."""
    facets = place.shape[1]
    to = np.empty((ordinals.shape[0], facets), np.int64)  # all places first: misses of the cache then overlap
    for i in range(ordinals.shape[0]):
        ordinal = ordinals[i]
        for facet in range(facets):
            row = np.int64(leaf[ordinal, facet]) * facets + facet
            to[i, facet] = -1
            if row < length.shape[0] and place[ordinal, facet] < length[row]:
                at = start[row] + place[ordinal, facet]
                if pool_ordinal[at] == ordinal:
                    to[i, facet] = at
    for i in range(ordinals.shape[0]):
        for facet in range(facets):
            at = to[i, facet]
            if at >= 0:
                for j in range(vectors.shape[2]):
                    pool_vector[at, j] = vectors[i, facet, j]


@njit(cache=True, nogil=True)
def release(row: int, start: A, room: A, free: A, ladder: A, pool_ordinal: A) -> int:
    """Leave a row's room to others, and return how large it is."""
    size = room[row]
    if size:
        step = np.searchsorted(ladder, size)
        begin = start[row]
        if ladder[step] == size:  # a room of another size would reach into its neighbour
            pool_ordinal[begin] = begin if free[step] < 0 else free[step]
            free[step] = begin
        room[row] = 0
    return int(size)


@njit(cache=True, nogil=True)
def make_room(
    start: A,
    length: A,
    room: A,
    free: A,
    ladder: A,
    pool_ordinal: A,
    pool_heat: A,
    pool_vector: A,
    rows: A,
    need: A,
    used: int,
) -> tuple[int, int, int]:
    """Move rows, from the first on, to rooms that hold what they need.

    Args:
        free: (steps,) for each step of the ladder the first room that was left, -1 for none; the next one stands in
            ``pool_ordinal`` where that room begins, the last names itself.

    Returns:
        How many rows were seen to before the pool was full, where the rooms end now, and how much more of the pool is
        room that was left.
    """
    left = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        if need[i] <= room[row]:
            continue
        step = np.searchsorted(ladder, need[i])
        to = free[step]
        if to >= 0:
            following = np.int64(pool_ordinal[to])
            free[step] = -1 if following == to else following
            left -= ladder[step]
        elif used + ladder[step] > pool_ordinal.shape[0]:
            return i, used, left
        else:
            to = used
            used += ladder[step]
        begin = start[row]
        for at in range(length[row]):
            pool_ordinal[to + at] = pool_ordinal[begin + at]
            pool_heat[to + at] = pool_heat[begin + at]
            for j in range(pool_vector.shape[1]):
                pool_vector[to + at, j] = pool_vector[begin + at, j]
        left += release(row, start, room, free, ladder, pool_ordinal)
        start[row], room[row] = to, ladder[step]
    return rows.shape[0], used, left


@njit(cache=True, nogil=True)
def squeeze(order: A, start: A, length: A, room: A, pool_ordinal: A, pool_heat: A, pool_vector: A) -> int:
    """Move rows down to close the gaps between them; returns where the last room ends.

    ``order`` has the rows that hold members, by where they start: each moves over what was moved or abandoned before.
    """
    end = 0
    for row in order:
        begin, n = start[row], length[row]
        if begin != end:
            for at in range(n):
                pool_ordinal[end + at] = pool_ordinal[begin + at]
                pool_heat[end + at] = pool_heat[begin + at]
                for j in range(pool_vector.shape[1]):
                    pool_vector[end + at, j] = pool_vector[begin + at, j]
        start[row] = end
        end += room[row]
    return end
