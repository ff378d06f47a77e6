"""Compiled retrieval: what the members of the chosen leaves score, and which are results. One thread, no GIL.

Scores are float32; keys are those of :mod:`indexer.retrieval.best_kernels`.
``row`` is leaf * facets + facet, as in :class:`indexer.members.MemberPool`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from indexer.half import prefetch, widen
from indexer.retrieval.best_kernels import ORDINAL, find, greatest, guess, index_of, key_of, score_of, sort

A = Any
BLOOM = 1 << 15
"""Bits of the filter that tells most members which are not results yet from those that are."""
_WANTED, _GIVEN = 1, 2
"""States of a result in the table."""
_AHEAD = 64
"""Members of the next leaf that are asked for before this one is read; the hardware follows from there."""


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, inline="never")
def _dots(bits: A, begin: int, count: int, query: A, out: A, base: int, first: bool) -> None:
    """Dot products of ``count`` members with a query; the greater of these and what is there, unless first."""
    for at in range(count):
        total = np.float32(0)
        for j in range(query.shape[0]):
            total += widen(bits[begin + at, j]) * query[j]
        if first or total > out[base + at]:
            out[base + at] = total


@njit(cache=True, nogil=True)
def _log1p(x: A) -> A:
    return np.float32(math.log1p(x)) if x > 0 else np.float32(0)


@njit(cache=True, nogil=True)
def _announce(bits: A, ordinal: A, begin: int, count: int) -> None:
    """Ask for the members that will be read next."""
    line, width = 64, bits.shape[1] * 2
    for at in range(bits.ctypes.data + begin * width, bits.ctypes.data + (begin + count) * width, line):
        prefetch(at)
    for at in range(ordinal.ctypes.data + begin * 4, ordinal.ctypes.data + (begin + count) * 4, line):
        prefetch(at)


@njit(cache=True, nogil=True)
def _scan(
    start: A,
    length: A,
    ordered: A,
    pool_ordinal: A,
    bits: A,
    created_at: A,
    labels: A,
    row: int,
    limit: int,
    skipped: A,
    skip_count: int,
    born_after: int,
    allowed: A,
    queries: A,
    facet: int,
    first: int,
    voters: A,
    who: A,
    at_of: A,
    score: A,
    base: int,
) -> int:
    """Similarities of the first ``limit`` members that pass; returns how many. See :func:`score`."""
    begin, n, count = start[row], length[row], 0
    behind = n - ordered[row]
    every = born_after > np.iinfo(np.int64).min or allowed.shape[0] > 0
    place, next_skip = -behind, 0  # negative: the members that came since, newest first
    while place < ordered[row] and count < limit:
        run_start, run = begin + place, 1
        if place < 0:
            run_start = begin + n - 1 - (place + behind)
        elif not every:
            while next_skip < skip_count and skipped[next_skip] < place:
                next_skip += 1
            end = ordered[row] if next_skip == skip_count else min(ordered[row], skipped[next_skip])
            run = min(end - place, limit - count)
            if run == 0:
                place += 1
                continue
        if place < 0 or every:
            passes = created_at[pool_ordinal[run_start]] >= born_after
            if allowed.shape[0]:
                passes &= allowed[labels[pool_ordinal[run_start]]]
            for skip in range(skip_count):
                passes &= begin + skipped[skip] != run_start
            if not passes:
                place += 1
                continue
        for i in range(run):
            who[base + count + i] = pool_ordinal[run_start + i]
            at_of[base + count + i] = run_start + i
        for v in range(voters.shape[0]):
            _dots(bits, run_start, run, queries[first + voters[v], facet], score, base + count, v == 0)
        count += run
        place += run
    return count


@njit(cache=True, nogil=True)
def score(
    # the leaves chosen
    pointer: A,
    chosen_pointer: A,
    facet_of: A,
    leaf_of: A,
    weight: A,
    voter_pointer: A,
    voters: A,
    # the triggers, what is left out
    queries: A,
    skip_pointer: A,
    skip: A,
    born_after: A,
    allowed_pointer: A,
    allowed: A,
    # the index
    start: A,
    length: A,
    ordered: A,
    pool_ordinal: A,
    pool_heat: A,
    bits: A,
    place: A,
    leaf: A,
    created_at: A,
    labels: A,
    last_at: A,
    epochs: A,
    decayed: A,
    window: int,
    # the weights
    k: int,
    limit: int,
    share: float,
    similarity_weight: float,
    engagement_weight: float,
    freshness_weight: float,
    now_ms: float,
    half_life_ms: float,
    freshness_half_life_ms: float,
    landmark: int,
    exact: bool,
    # scratch
    generation: int,
    who: A,
    at_of: A,
    scores: A,
    table: A,
    keys: A,
    rest: A,
    bloom: A,
    # the answer
    out_count: A,
    out_scored: A,
    out_ordinal: A,
    out_score: A,
    out_slot: A,
) -> None:
    """Score the first members of each chosen leaf and keep the best, each leaf with its share.

    Args:
        pointer, chosen_pointer, facet_of, leaf_of, weight, voter_pointer, voters: as :func:`choose` gives them.
        queries: (T, F, d) float32 embeddings of the triggers.
        skip_pointer, skip: ordinals that no answer may hold, the triggers among them.
        born_after, allowed_pointer, allowed: what passes, see :class:`indexer.retrieval.request.Limits`.
        start, length, ordered, pool_ordinal, pool_heat, bits, place: of the pool.
        leaf, created_at, labels, last_at, epochs, decayed: (items, ...); ``window`` of the last two counts.
        k, limit, share: results of a request, members scored in a leaf, share of the results given out by votes.
        landmark: of the window that counts.
        exact: take engagements from ``epochs`` and ``decayed``; else from ``pool_heat``, which is the same number where
            the window is the pool's and nobody engaged after ``now_ms``.
        generation: that of the last request; each uses up to two, below 2**32.
        who, at_of, scores: room for all members scored in a request.
        table: (a power of two, at least twice that; 3) uint32: generation, ordinal, state.
        keys, rest: room for as many keys, and for 2 * k + 64.
        bloom: BLOOM / 64 uint64.
        out_count, out_scored: (Q,) results and members scored; out_ordinal, out_score, out_slot: (Q, most results).
    """
    facets = place.shape[1]
    score_bits = scores.view(np.uint32)
    factor = np.float32(2.0 ** min(max(landmark - now_ms / half_life_ms, -1_000.0), 100.0))
    for request in range(pointer.shape[0] - 1):
        first = pointer[request]
        slots = chosen_pointer[request + 1] - chosen_pointer[request]
        ends = np.zeros(slots + 1, np.int64)
        limits = np.zeros(slots, np.uint64)
        total_weight = 0.0
        for at in range(chosen_pointer[request], chosen_pointer[request + 1]):
            total_weight += weight[at]
        most = 0
        for at in range(chosen_pointer[request], chosen_pointer[request + 1]):
            most += min(limit, length[leaf_of[at] * facets + facet_of[at]])
        mask = 63
        while mask < 2 * most:
            mask = 2 * mask + 1
        bloom[:] = 0
        skips = skip[skip_pointer[request] : skip_pointer[request + 1]]
        skipped = np.empty(skips.shape[0], np.int64)
        quotas = 0
        for slot in range(slots):
            at = chosen_pointer[request] + slot
            facet = facet_of[at]
            row = leaf_of[at] * facets + facet
            if slot + 1 < slots:
                then = leaf_of[at + 1] * facets + facet_of[at + 1]
                _announce(bits, pool_ordinal, start[then], min(length[then], limit, _AHEAD))
            skip_count = 0
            for ordinal in skips:
                if ordinal < 0 or leaf[ordinal, facet] != leaf_of[at] or place[ordinal, facet] >= length[row]:
                    continue
                if pool_ordinal[start[row] + place[ordinal, facet]] == ordinal:
                    skipped[skip_count] = place[ordinal, facet]
                    skip_count += 1
            skipped[:skip_count].sort()
            base = ends[slot]
            count = _scan(
                start,
                length,
                ordered,
                pool_ordinal,
                bits,
                created_at,
                labels,
                row,
                limit,
                skipped,
                skip_count,
                born_after[request],
                allowed[allowed_pointer[request] : allowed_pointer[request + 1]],
                queries,
                facet,
                first,
                voters[voter_pointer[at] : voter_pointer[at + 1]],
                who,
                at_of,
                scores,
                base,
            )
            ends[slot + 1] = base + count
            if similarity_weight != 1:
                for i in range(base, base + count):
                    scores[i] *= np.float32(similarity_weight)
            if engagement_weight and exact:
                for i in range(base, base + count):
                    ordinal = who[i]
                    heat = np.float32(
                        min(
                            math.ldexp(decayed[ordinal, window], int(epochs[ordinal, window]) * 256 - landmark),
                            3.4028234e38,
                        )
                    )
                    when = max(now_ms, np.float64(last_at[ordinal]))
                    kept = np.float32(2.0 ** min(max(landmark - when / half_life_ms, -1_000.0), 100.0))
                    scores[i] += np.float32(engagement_weight) * _log1p(heat * kept)
            elif engagement_weight:
                for i in range(base, base + count):
                    heat = pool_heat[at_of[i]]
                    if heat > 0:
                        scores[i] += np.float32(engagement_weight) * _log1p(heat * factor)
            if freshness_weight:
                for i in range(base, base + count):
                    age = max(0.0, now_ms - created_at[who[i]])
                    scores[i] += np.float32(freshness_weight * 2.0 ** (-age / freshness_half_life_ms))
            # the leaf's share
            quota = 0
            if share > 0:
                quota = max(1, int(np.rint(share * k * weight[at] / max(total_weight, 1e-12))))
            have, least = 0, np.float32(-np.inf)
            size = 2 * quota + 64
            if quota and count > quota:
                for i in range(base, base + count):
                    if scores[i] >= least:
                        rest[have] = key_of(score_bits[i], who[i])
                        have += 1
                        if have == size:
                            greatest(rest, have, quota)
                            have = quota
                            limits[slot] = rest[quota - 1]
                            least = score_of(rest[quota - 1])
                greatest(rest, have, quota)
                limits[slot] = rest[quota - 1]
                have = quota
            elif quota:
                for i in range(base, base + count):
                    rest[have] = key_of(score_bits[i], who[i])
                    have += 1
            for i in range(have):
                ordinal = np.int64(ORDINAL - (rest[i] & ORDINAL))
                bloom[(ordinal % BLOOM) >> 6] |= np.uint64(1) << np.uint64(ordinal & 63)
            quotas += have
        # What may be a result: all within quotas, wherever else they are, and somewhat more than are wanted besides.
        least = guess(score_bits, ends[slots], k, keys)
        while True:
            n = 0
            for slot in range(slots):
                for i in range(ends[slot], ends[slot + 1]):
                    if scores[i] < least and not (
                        quotas and bloom[(who[i] % BLOOM) >> 6] >> np.uint64(who[i] & 63) & np.uint64(1)
                    ):
                        continue
                    within = quotas and key_of(score_bits[i], who[i]) >= limits[slot]
                    keys[n] = (key_of(score_bits[i], 0) & ~ORDINAL) | np.uint64(2 * i + within)
                    n += 1
            sort(keys, rest, n)
            first_equal = 0
            for at in range(1, n + 1):  # of equal scores the lesser ordinal comes first, then the earlier leaf
                if at < n and keys[at] >> np.uint64(32) == keys[first_equal] >> np.uint64(32):
                    to = at
                    while to > first_equal and who[index_of(keys[to - 1])] > who[index_of(keys[to])]:
                        keys[to - 1], keys[to] = keys[to], keys[to - 1]
                        to -= 1
                else:
                    first_equal = at
            generation += 1
            within_quotas = 0
            for at in range(n if quotas else 0):
                if within_quotas < k and keys[at] & np.uint64(1):
                    ordinal = np.int64(who[index_of(keys[at])])
                    to = find(table, mask, generation, ordinal)
                    if table[to, 0] != generation:
                        table[to, 0], table[to, 1], table[to, 2] = generation, ordinal, _WANTED
                        within_quotas += 1
            others, count, slot = k - within_quotas, 0, 0
            for at in range(n):
                index = index_of(keys[at])
                ordinal = np.int64(who[index])
                to = find(table, mask, generation, ordinal)
                if table[to, 0] != generation:
                    if not others:
                        continue
                    others -= 1
                    table[to, 0], table[to, 1] = generation, ordinal
                elif table[to, 2] != _WANTED:
                    continue
                table[to, 2] = _GIVEN
                out_ordinal[request, count] = ordinal
                out_score[request, count] = scores[index]
                out_slot[request, count] = np.searchsorted(ends[1:], index, side="right")
                count += 1
                if count == k:
                    break
            if not others or least == -np.inf:
                break
            least = np.float32(-np.inf)  # the guess was too high
        out_count[request] = count
        out_scored[request] = ends[slots]
