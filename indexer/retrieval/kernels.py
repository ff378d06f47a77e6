"""Compiled retrieval: which leaves are read, what their members score, which are the best. One thread, no GIL.

Scores are float32. A result's *key* is a uint64 that orders results: the greater score first, of equals the lesser
ordinal. ``row`` is leaf * facets + facet, as in :class:`indexer.members.MemberPool`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from indexer.half import as_float, widen

A = Any
BLOOM = 1 << 15
"""Bits of the filter that tells most members which are not results yet from those that are."""
_ORDINAL = np.uint64(0xFFFFFFFF)
_WANTED, _GIVEN = 1, 2
"""States of a result in the table."""
_SAMPLE = 1024


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


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, inline="never")
def _dots(bits: A, begin: int, count: int, query: A, out: A, base: int, first: bool) -> None:  # noqa: FBT001
    """Dot products of ``count`` members with a query; the greater of these and what is there, unless first."""
    for at in range(count):
        total = np.float32(0)
        for j in range(query.shape[0]):
            total += widen(bits[begin + at, j]) * query[j]
        if first or total > out[base + at]:
            out[base + at] = total


@njit(cache=True, nogil=True)
def _key(bits: A, ordinal: A) -> A:
    flipped = ~bits if bits & np.uint32(0x80000000) else bits | np.uint32(0x80000000)
    return (np.uint64(flipped) << np.uint64(32)) | (_ORDINAL - np.uint64(ordinal))


@njit(cache=True, nogil=True)
def _score_bits(key: A) -> A:
    flipped = np.uint32(key >> np.uint64(32))
    return np.uint32(flipped & np.uint32(0x7FFFFFFF) if flipped & np.uint32(0x80000000) else ~flipped)


@njit(cache=True, nogil=True)
def _greatest(keys: A, n: int, k: int) -> None:
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
def _find(table: A, mask: int, generation: int, ordinal: int) -> int:
    """Slot of the table, of which the first ``mask + 1`` are used, that holds the ordinal, or where it would go."""
    at = (ordinal * 0x9E3779B1 >> 7) & mask
    while table[at, 0] == generation and table[at, 1] != ordinal:
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True)
def _log1p(x: A) -> A:
    return np.float32(math.log1p(x)) if x > 0 else np.float32(0)


@njit(cache=True, nogil=True)
def _scan(
    start: A,
    length: A,
    ordered: A,
    pool_ordinal: A,
    bits: A,
    created_at: A,
    row: int,
    limit: int,
    skipped: A,
    skip_count: int,
    born_after: int,
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
    every = born_after > np.iinfo(np.int64).min
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
def _float(key: A) -> A:
    """Score of a key."""
    return as_float(_score_bits(key))


@njit(cache=True, nogil=True)
def _sort(keys: A, spare: A, n: int) -> None:
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
def _index(key: A) -> int:
    """Which of the members scored a key is of."""
    return np.int64((key & _ORDINAL) >> np.uint64(1))


@njit(cache=True, nogil=True)
def _guess(score_bits: A, total: int, need: int, keys: A) -> A:
    """A score that somewhat more than ``need`` of the first ``total`` probably reach, from a sample."""
    n = min(total, _SAMPLE)
    expected = n * need / max(1, total)
    rank = np.int64(1.25 * expected + 3 * math.sqrt(expected)) + 2
    if rank >= n:
        return np.float32(-np.inf)
    stride = total // n
    for at in range(n):
        keys[at] = _key(score_bits[at * stride], 0)
    _greatest(keys, n, rank)
    return _float(keys[rank - 1])


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
    exact: bool,  # noqa: FBT001
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
        born_after: (Q,) epoch milliseconds; what was created earlier is passed over.
        start, length, ordered, pool_ordinal, pool_heat, bits, place: of the pool.
        leaf, created_at, last_at, epochs, decayed: (items, ...); ``window`` of the last two counts.
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
                row,
                limit,
                skipped,
                skip_count,
                born_after[request],
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
                            math.ldexp(decayed[ordinal, window], np.int64(epochs[ordinal, window]) * 256 - landmark),
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
                quota = max(1, np.int64(np.rint(share * k * weight[at] / max(total_weight, 1e-12))))
            have, least = 0, np.float32(-np.inf)
            size = 2 * quota + 64
            if quota and count > quota:
                for i in range(base, base + count):
                    if scores[i] >= least:
                        rest[have] = _key(score_bits[i], who[i])
                        have += 1
                        if have == size:
                            _greatest(rest, have, quota)
                            have = quota
                            limits[slot] = rest[quota - 1]
                            least = _float(rest[quota - 1])
                _greatest(rest, have, quota)
                limits[slot] = rest[quota - 1]
                have = quota
            elif quota:
                for i in range(base, base + count):
                    rest[have] = _key(score_bits[i], who[i])
                    have += 1
            for i in range(have):
                ordinal = np.int64(_ORDINAL - (rest[i] & _ORDINAL))
                bloom[(ordinal % BLOOM) >> 6] |= np.uint64(1) << np.uint64(ordinal & 63)
            quotas += have
        # What may be a result: all within quotas, wherever else they are, and somewhat more than are wanted besides.
        least = _guess(score_bits, ends[slots], k, keys)
        while True:
            n = 0
            for slot in range(slots):
                for i in range(ends[slot], ends[slot + 1]):
                    if scores[i] < least and not (
                        quotas and bloom[(who[i] % BLOOM) >> 6] >> np.uint64(who[i] & 63) & np.uint64(1)
                    ):
                        continue
                    within = quotas and _key(score_bits[i], who[i]) >= limits[slot]
                    keys[n] = (_key(score_bits[i], 0) & ~_ORDINAL) | np.uint64(2 * i + within)
                    n += 1
            _sort(keys, rest, n)
            first_equal = 0
            for at in range(1, n + 1):  # of equal scores the lesser ordinal comes first, then the earlier leaf
                if at < n and keys[at] >> np.uint64(32) == keys[first_equal] >> np.uint64(32):
                    to = at
                    while to > first_equal and who[_index(keys[to - 1])] > who[_index(keys[to])]:
                        keys[to - 1], keys[to] = keys[to], keys[to - 1]
                        to -= 1
                else:
                    first_equal = at
            generation += 1
            within_quotas = 0
            for at in range(n if quotas else 0):
                if within_quotas < k and keys[at] & np.uint64(1):
                    ordinal = np.int64(who[_index(keys[at])])
                    to = _find(table, mask, generation, ordinal)
                    if table[to, 0] != generation:
                        table[to, 0], table[to, 1], table[to, 2] = generation, ordinal, _WANTED
                        within_quotas += 1
            others, count, slot = k - within_quotas, 0, 0
            for at in range(n):
                index = _index(keys[at])
                ordinal = np.int64(who[index])
                to = _find(table, mask, generation, ordinal)
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
