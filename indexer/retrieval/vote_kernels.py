"""Compiled: where triggers stand, and which leaves they choose. One thread, no GIL."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from indexer.half import widen

A = Any


@njit(cache=True, nogil=True)
def choose(
    pointer: A,
    own: A,
    distance: A,
    table_leaf: A,
    table_pointer: A,
    gumbel: A,
    probes: int,
    k: int,
    out_pointer: A,
    out_facet: A,
    out_leaf: A,
    out_weight: A,
    voter_pointer: A,
    voters: A,
) -> None:
    """Leaves of each request: histogram of the triggers' votes, the heaviest k or k drawn by weight.

    Args:
        pointer: (Q+1,) triggers of each request.
        own: (T, F) leaf of each trigger, -1 where it is the nearest of all.
        distance: (T, leaves of all facets) float32 to the centroids; no columns where none is needed.
        table_leaf, table_pointer: leaf id of each column, (F+1,) columns of each facet.
        gumbel: (Q, at least the votes of a request) noise for multinomial selection; no columns for top-K.
        probes: further leaves each trigger votes for with half a vote, nearest first.
        k: leaves of a request.
        out_pointer, out_facet, out_leaf, out_weight: chosen leaves of each request, heaviest first.
        voter_pointer, voters: triggers that voted for each, counted from the request's first.
    """
    facets = own.shape[1]
    chosen_so_far, voters_so_far = 0, 0
    for request in range(pointer.shape[0] - 1):
        first, last = pointer[request], pointer[request + 1]
        votes = np.empty((last - first) * facets * (1 + probes), np.int64)
        count = 0
        for trigger in range(first, last):
            for facet in range(facets):
                begin, end = table_pointer[facet], table_pointer[facet + 1]
                mine = own[trigger, facet]
                wanted = 0 if distance.shape[1] == 0 else min(probes + (mine < 0), end - begin - (mine >= 0))
                near = np.empty(wanted, np.int64)
                have = 0
                for at in range(begin, end if wanted else begin):
                    if have == wanted and distance[trigger, at] >= distance[trigger, near[have - 1]]:
                        continue
                    if table_leaf[at] == mine:
                        continue
                    have = min(have + 1, wanted)
                    put = have - 1
                    while put and distance[trigger, near[put - 1]] > distance[trigger, at]:
                        near[put] = near[put - 1]
                        put -= 1
                    near[put] = at
                for rank in range(have):
                    leaf = table_leaf[near[rank]]
                    whole = rank == 0 and mine < 0
                    votes[count] = ((((facet << 32) | leaf) << 20) | (trigger - first)) << 1 | whole
                    count += 1
                if mine >= 0:
                    votes[count] = ((((facet << 32) | mine) << 20) | (trigger - first)) << 1 | 1
                    count += 1
        votes = np.sort(votes[:count])
        starts = np.empty(count + 1, np.int64)
        weight = np.zeros(count, np.float64)
        slots = 0
        for at in range(count):
            if at == 0 or votes[at] >> 21 != votes[at - 1] >> 21:
                starts[slots] = at
                slots += 1
            weight[slots - 1] += 1.0 if votes[at] & 1 else 0.5
        starts[slots] = count
        rank_by = -weight[:slots]
        if gumbel.shape[1]:
            for slot in range(slots):
                rank_by[slot] = -(math.log(weight[slot]) + gumbel[request, slot])
        order = np.argsort(rank_by, kind="mergesort")[: min(k, slots)]
        order = order[np.argsort(-weight[order], kind="mergesort")]
        for slot in order:
            key = votes[starts[slot]] >> 21
            out_facet[chosen_so_far] = key >> 32
            out_leaf[chosen_so_far] = key & 0xFFFFFFFF
            out_weight[chosen_so_far] = weight[slot]
            for at in range(starts[slot], starts[slot + 1]):
                voters[voters_so_far] = (votes[at] >> 1) & 0xFFFFF
                voters_so_far += 1
            chosen_so_far += 1
            voter_pointer[chosen_so_far] = voters_so_far
        out_pointer[request + 1] = chosen_so_far


@njit(cache=True, nogil=True)
def locate(ordinals: A, live: int, state: A, leaf: A, start: A, place: A, bits: A, leaves: A, vectors: A) -> int:
    """Leaves (n, F) and float32 embeddings (n, F, d) of those of n ordinals that are live; returns how many.

    ``ordinals`` holds -1 for what was never seen, and afterwards the live ones first, in their order.
    """
    facets, found = place.shape[1], 0
    for at in range(ordinals.shape[0]):
        ordinal = ordinals[at]
        if ordinal < 0 or state[ordinal] != live:
            continue
        for facet in range(facets):
            leaves[found, facet] = leaf[ordinal, facet]
            member = start[np.int64(leaf[ordinal, facet]) * facets + facet] + place[ordinal, facet]
            for j in range(bits.shape[1]):
                vectors[found, facet, j] = widen(bits[member, j])
        ordinals[found] = ordinal
        found += 1
    return found
