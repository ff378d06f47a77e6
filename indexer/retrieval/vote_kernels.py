"""Compiled: where triggers stand, and which leaves they choose. One thread, no GIL."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from indexer.compiling import njit
from indexer.half import prefetch, widen
from indexer.retrieval.request import Centroids, Chosen

A = Any
_DEEP = 8
"""Dimensions that are added up before a sum is put back."""
_BLOCK = 128
"""Leaves that are compared with all triggers before the next ones are."""
_TOGETHER = 32
"""Leaves that are passed over at once where none of them is closer."""
_FEW = 32
"""Up to so many neighbours are kept in order one by one; more are sorted."""


@njit(cache=True, nogil=True, fastmath={"contract"})
def _closeness(queries: A, facet: int, columns: A, norm: A, begin: int, end: int, out: A) -> None:
    """How close leaves are to queries (T, F, d): -distance^2 / 2 up to a constant, of columns from begin to end.

    ``out`` is (T, at least as many). Block by block, so that all queries meet a block while it is near.
    """
    deep = columns.shape[0] // _DEEP * _DEEP
    for low in range(begin, end, _BLOCK):
        high = min(low + _BLOCK, end)
        for t in range(queries.shape[0]):
            query, sums = queries[t, facet], out[t][low - begin : high - begin]
            norms = norm[low:high]
            for i in range(sums.shape[0]):
                sums[i] = np.float32(-0.5) * norms[i]
            for j in range(0, deep, _DEEP):
                c0, c1, c2, c3, c4, c5, c6, c7 = (
                    columns[j][low:high], columns[j + 1][low:high], columns[j + 2][low:high], columns[j + 3][low:high],
                    columns[j + 4][low:high], columns[j + 5][low:high], columns[j + 6][low:high],
                    columns[j + 7][low:high],
                )  # fmt: skip
                q0, q1, q2, q3, q4, q5, q6, q7 = (
                    query[j], query[j + 1], query[j + 2], query[j + 3],
                    query[j + 4], query[j + 5], query[j + 6], query[j + 7],
                )  # fmt: skip
                for i in range(sums.shape[0]):
                    some = (q0 * c0[i] + q1 * c1[i]) + (q2 * c2[i] + q3 * c3[i])
                    sums[i] += some + ((q4 * c4[i] + q5 * c5[i]) + (q6 * c6[i] + q7 * c7[i]))
            for j in range(deep, columns.shape[0]):
                column = columns[j][low:high]
                for i in range(sums.shape[0]):
                    sums[i] += query[j] * column[i]


@njit(cache=True, nogil=True)
def _nearest(close: A, leaf: A, begin: int, end: int, other_than: int, wanted: int, near: A) -> int:
    """Columns of the ``wanted`` closest leaves, the closest first, of equals the first; returns how many."""
    have = 0
    if wanted > _FEW:
        for i in np.argsort(-close[: end - begin], kind="mergesort"):
            if have < wanted and leaf[begin + i] != other_than:
                near[have] = begin + i
                have += 1
        return have
    least = np.float32(-np.inf)
    for low in range(0, end - begin, _TOGETHER):
        some = close[low : min(low + _TOGETHER, end - begin)]
        closer = np.int32(0)
        for i in range(some.shape[0]):
            closer += np.int32(some[i] > least)
        for i in range(low, low + some.shape[0] if closer or have < wanted else low):
            if (close[i] <= least and have == wanted) or leaf[begin + i] == other_than:
                continue
            have = min(have + 1, wanted)
            put = have - 1
            while put and close[near[put - 1] - begin] < close[i]:
                near[put] = near[put - 1]
                put -= 1
            near[put] = begin + i
            least = close[near[have - 1] - begin]
    return have


@njit(cache=True, nogil=True)
def _vote(first: int, last: int, leaves: A, vectors: A, table: A, probes: int, close: A, near: A, votes: A) -> int:
    """Votes of one request's triggers, as ``facet, leaf, trigger, whether it is whole`` in one number; how many."""
    facets, count = leaves.shape[1], 0
    for facet in range(facets):
        begin, end = table.pointer[facet], table.pointer[facet + 1]
        if end > begin:
            _closeness(vectors[first:last], facet, table.columns, table.norm, begin, end, close)
        for trigger in range(first, last):
            mine = leaves[trigger, facet]
            wanted = min(probes + (mine < 0), end - begin - (mine >= 0))
            have = 0
            if wanted > 0:
                have = _nearest(close[trigger - first], table.leaf, begin, end, mine, wanted, near)
            for rank in range(have):
                whole = rank == 0 and mine < 0
                votes[count] = ((((facet << 32) | table.leaf[near[rank]]) << 20) | (trigger - first)) << 1 | whole
                count += 1
            if mine >= 0:
                votes[count] = ((((facet << 32) | mine) << 20) | (trigger - first)) << 1 | 1
                count += 1
    return count


@njit(cache=True, nogil=True)
def choose_each(pointer: A, leaves: A, vectors: A, gumbel: A, probes: A, k: int, table: A, chosen: A) -> None:
    """As :func:`choose`, of named tuples."""
    facets, widest, most, room_for, farthest = leaves.shape[1], 0, 0, 0, 0
    for facet in range(facets):
        widest = max(widest, table.pointer[facet + 1] - table.pointer[facet])
    for request in range(pointer.shape[0] - 1):
        triggers = pointer[request + 1] - pointer[request]
        most, farthest = max(most, triggers), max(farthest, probes[request])
        room_for = max(room_for, triggers * facets * (1 + min(probes[request], widest)))
    close, near = np.empty((most, widest), np.float32), np.empty(min(farthest + 1, widest), np.int64)
    room = np.empty(room_for, np.int64)
    starts, weight = np.empty(room.shape[0] + 1, np.int64), np.empty(room.shape[0], np.float64)
    chosen_so_far, voters_so_far = 0, 0
    chosen.pointer[0] = chosen.voter_pointer[0] = 0
    for request in range(pointer.shape[0] - 1):
        first, last = pointer[request], pointer[request + 1]
        votes = room[: _vote(first, last, leaves, vectors, table, probes[request], close, near, room)]
        votes.sort()
        slots = 0
        for at in range(votes.shape[0]):
            if at == 0 or votes[at] >> 21 != votes[at - 1] >> 21:
                starts[slots], weight[slots] = at, 0
                slots += 1
            weight[slots - 1] += 1.0 if votes[at] & 1 else 0.5
        starts[slots] = votes.shape[0]
        order = _heaviest(weight[:slots], gumbel[request], k)
        for slot in order:
            key = votes[starts[slot]] >> 21
            chosen.facet[chosen_so_far] = key >> 32
            chosen.leaf[chosen_so_far] = key & 0xFFFFFFFF
            chosen.weight[chosen_so_far] = weight[slot]
            for at in range(starts[slot], starts[slot + 1]):
                chosen.voters[voters_so_far] = (votes[at] >> 1) & 0xFFFFF
                voters_so_far += 1
            chosen_so_far += 1
            chosen.voter_pointer[chosen_so_far] = voters_so_far
        chosen.pointer[request + 1] = chosen_so_far


@njit(cache=True, nogil=True)
def choose(pointer: A, leaves: A, vectors: A, gumbel: A, probes: A, k: int, *given: A) -> None:
    """Leaves of each request: histogram of the triggers' votes, the heaviest k or k drawn by weight.

    Args:
        pointer, leaves, vectors: (Q+1,), (T, F), (T, F, d) of the triggers; a leaf of -1 is the nearest of all.
        gumbel: (Q, at least the votes of a request) noise for multinomial selection; no columns for top-K.
        probes: (Q,) further leaves each trigger of a request votes for with half a vote, nearest first.
        k: leaves of a request.
        given: the fields of :class:`Centroids`, without leaves where no nearest ones are needed, and of
            :class:`Chosen`, with room for all votes.
    """
    choose_each(pointer, leaves, vectors, gumbel, probes, k, Centroids(*given[:4]), Chosen(*given[4:]))


@njit(cache=True, nogil=True)
def _heaviest(weight: A, noise: A, k: int) -> A:
    """The k heaviest, or the k with the greatest noisy weight; the heaviest first, of equals the first."""
    slots = weight.shape[0]
    if noise.shape[0]:
        drawn = np.empty(slots, np.float64)
        for slot in range(slots):
            drawn[slot] = -(math.log(weight[slot]) + noise[slot])
        order = np.argsort(drawn, kind="mergesort")[: min(k, slots)]
        return order[np.argsort(-weight[order], kind="mergesort")]
    keys = np.empty(slots, np.int64)
    for slot in range(slots):
        keys[slot] = (-np.int64(2 * weight[slot]) << 32) | slot
    keys.sort()
    return keys[: min(k, slots)] & 0xFFFFFFFF


@njit(cache=True, nogil=True)
def locate(ordinals: A, live: int, state: A, leaf: A, start: A, place: A, bits: A, leaves: A, vectors: A) -> int:
    """Leaves (n, F) and float32 embeddings (n, F, d) of those of n ordinals that are live; returns how many.

    ``ordinals`` holds -1 for what was never seen, and afterwards the live ones first, in their order.
    """
    facets, found = place.shape[1], 0
    members = np.empty((ordinals.shape[0], facets), np.int64)
    for at in range(ordinals.shape[0]):
        ordinal = ordinals[at]
        if ordinal < 0 or state[ordinal] != live:
            continue
        for facet in range(facets):
            leaves[found, facet] = leaf[ordinal, facet]
            member = start[np.int64(leaf[ordinal, facet]) * facets + facet] + place[ordinal, facet]
            members[found, facet] = member
            prefetch(bits.ctypes.data + member * bits.shape[1] * 2)
        ordinals[found] = ordinal
        found += 1
    for at in range(found):
        for facet in range(facets):
            for j in range(bits.shape[1]):
                vectors[at, facet, j] = widen(bits[members[at, facet], j])
    return found
