"""Compiled: which members of a leaf are read, and how similar they are to a trigger. One thread, no GIL.

``row`` is leaf * facets + facet, as in :class:`indexer.members.MemberPool`; ``pool`` is a
:class:`indexer.retrieval.request.Pool`. A *position* counts members of the pool from its first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.compiling import njit
from indexer.half import dots, prefetch, widen

A = Any
_LINE = 64
"""Bytes that come from memory at once."""
_AHEAD = 64
"""Members that are asked for before they are compared: of this leaf, and behind its last the first of the next one.

One at a time: memory answers while others are compared, and more at once would wait for each other.
"""
_ROWS = 4
"""Members that are compared at once; what is written beyond the last is room that callers leave."""
_USUAL, _CHUNKS = 64, 4
"""Dimensions for which there is code of its own, and how many sixteens they are."""


@njit(cache=True, nogil=True)
def passes(pool: A, filters: A, request: int, position: int) -> A:
    """Whether a member may be a result of this request, as far as the filters go; by arrays over items."""
    ordinal, first = pool.ordinal[position], filters.pointer[request]
    if filters.pointer[request + 1] > first and not filters.allowed[first + pool.labels[ordinal]]:
        return False
    return pool.created_at[ordinal] >= filters.born_after[request]


@njit(cache=True, nogil=True)
def announce(pool: A, row: int, limit: int) -> A:
    """Ask for ordinals and heats of the members that will be read next; their position and how many they are."""
    begin, count = pool.start[row], min(pool.length[row], limit, _AHEAD)
    for address in range(pool.ordinal.ctypes.data + begin * 4, pool.ordinal.ctypes.data + (begin + count) * 4, _LINE):
        prefetch(address)
    for address in range(pool.heat.ctypes.data + begin * 4, pool.heat.ctypes.data + (begin + count) * 4, _LINE):
        prefetch(address)
    return begin, count


@njit(cache=True, nogil=True)
def _embeddings(bits: A, begin: int, end: int) -> None:
    """Ask for the embeddings of members at positions from begin to before the end."""
    width = bits.shape[1] * 2
    for address in range(bits.ctypes.data + begin * width, bits.ctypes.data + end * width, _LINE):
        prefetch(address)


@njit(cache=True, nogil=True)
def left_out(pool: A, ordinals: A, out: A) -> int:
    """Places of the items that no answer may hold: ``row << 32 | place``, ascending and distinct; returns how many."""
    count, facets = 0, pool.place.shape[1]
    known = min(pool.leaf.shape[0], pool.place.shape[0])
    for ordinal in ordinals:
        if not 0 <= ordinal < known:
            continue
        for facet in range(facets):
            row, place = np.int64(pool.leaf[ordinal, facet]) * facets + facet, np.int64(pool.place[ordinal, facet])
            if row >= pool.start.shape[0] or place >= pool.length[row]:
                continue
            if pool.ordinal[pool.start[row] + place] == ordinal:
                out[count] = (row << 32) | place
                count += 1
    out[:count].sort()
    distinct = 0
    for i in range(count):
        if i == 0 or out[i] != out[distinct - 1]:
            out[distinct] = out[i]
            distinct += 1
    return distinct


@njit(cache=True, nogil=True)
def read(pool: A, filters: A, request: int, row: int, limit: int, skips: A, at: A, base: int) -> int:
    """Positions of the first ``limit`` members of a leaf that may be results, from ``at[base]`` on; returns how many.

    ``skips`` is what :func:`left_out` gave.
    """
    begin, length, ordered = pool.start[row], pool.length[row], pool.ordered[row]
    mine, checked, count = np.int64(row) << 32, filters.active[request], 0
    following = np.searchsorted(skips, mine)
    for place in range(length - 1, ordered - 1, -1):  # came since the leaf was sorted, the newest first
        if count == limit:
            return count
        skip = following
        while skip < skips.shape[0] and skips[skip] < mine + place:
            skip += 1
        if skip < skips.shape[0] and skips[skip] == mine + place:
            continue
        if not checked or passes(pool, filters, request, begin + place):
            at[base + count] = begin + place
            count += 1
    place = 0
    while place < ordered and count < limit:
        end = ordered
        if following < skips.shape[0]:
            end = min(ordered, skips[following] - mine)
            following += 1
        if checked:
            for position in range(begin + place, begin + end):
                if count < limit and passes(pool, filters, request, position):
                    at[base + count] = position
                    count += 1
        else:
            run = min(end - place, limit - count)
            part = at[base + count : base + count + run]
            for i in range(part.shape[0]):
                part[i] = begin + place + i
            count += run
        place = end + 1
    return count


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, forceinline=True)
def _compare(
    bits: A, at: A, begin: int, count: int, query: A, dim: int, scores: A, to: int, first: bool, following: A
) -> None:
    last, width, memory, asked = begin + count - 1, dim * 2, bits.ctypes.data, following[0]
    for i in range(0, count, _ROWS):
        for ahead in range(i + _AHEAD, min(i + _AHEAD + _ROWS, count)):
            row = memory + np.int64(at[begin + ahead]) * width
            for line in range(0, width, _LINE):
                prefetch(row + line)
        upto = following[0] + min(following[1], i + _ROWS + _AHEAD - count)
        if asked < upto:
            _embeddings(bits, asked, upto)
            asked = upto
        a = np.int64(at[begin + i])
        b = np.int64(at[min(begin + i + 1, last)])
        c = np.int64(at[min(begin + i + 2, last)])
        d = np.int64(at[min(begin + i + 3, last)])
        of_a = of_b = of_c = of_d = np.float32(0)
        if dim == _USUAL:
            rows = memory + a * width, memory + b * width, memory + c * width, memory + d * width
            of_a, of_b, of_c, of_d = dots(rows, query.ctypes.data, _CHUNKS)
        else:
            for j in range(dim):
                of_a += widen(bits[a, j]) * query[j]
                of_b += widen(bits[b, j]) * query[j]
                of_c += widen(bits[c, j]) * query[j]
                of_d += widen(bits[d, j]) * query[j]
        if not first:
            of_a, of_b = max(of_a, scores[to + i]), max(of_b, scores[to + i + 1])
            of_c, of_d = max(of_c, scores[to + i + 2]), max(of_d, scores[to + i + 3])
        scores[to + i] = of_a
        scores[to + i + 1] = of_b
        scores[to + i + 2] = of_c
        scores[to + i + 3] = of_d


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, inline="never")
def similarities(
    bits: A, at: A, begin: int, count: int, query: A, scores: A, to: int, first: bool, following: A
) -> None:
    """Dot products of members with a query, or the greater of these and what is there, from ``scores[to]`` on.

    The members are those at positions ``at[begin : begin + count]``. Up to three scores beyond the last are
    overwritten. ``following`` are the position of members that will be compared next, and how many. However the members
    are grouped, one has the same score, and every reader of an index the same answer.
    """
    if bits.shape[1] == _USUAL:
        _compare(bits, at, begin, count, query, _USUAL, scores, to, first, following)
    else:
        _compare(bits, at, begin, count, query, bits.shape[1], scores, to, first, following)
