"""Compiled retrieval: what the members of the chosen leaves score, and which are results. One thread, no GIL.

Scores are float32. An *entry* is a member that was scored, once for each leaf that it was read in, or once for each
trigger that voted for that leaf; a *piece* is a run of entries: its begin, its end, the slot of its leaf. Arguments are
named tuples of arrays and numbers, see :mod:`indexer.retrieval.request` and
:class:`indexer.retrieval.room.Room`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.compiling import njit
from indexer.retrieval.best_kernels import (
    best,
    find,
    floor_of,
    index_of,
    key_of,
    order_equals,
    ranked,
    reach,
    score_of,
    sort,
)
from indexer.retrieval.prior_kernels import priors
from indexer.retrieval.request import Chosen, Filters, Found, How, Pool, Triggers
from indexer.retrieval.room import BLOOM, parted
from indexer.retrieval.scan_kernels import announce, left_out, read, similarities

A = Any
_WANTED, _GIVEN = 1, 2
"""States of a result in the table."""
_PAD = 4
"""Room behind a run of entries, see :func:`indexer.retrieval.scan_kernels.similarities`."""


@njit(cache=True, nogil=True)
def _need(asked: A, chosen: A, pool: A, how: A) -> int:
    """Room for entries that the greatest of the requests may need."""
    facets, most = pool.place.shape[1], 0
    for request in range(asked.pointer.shape[0] - 1):
        mine = _PAD * (asked.pointer[request + 1] - asked.pointer[request]) * facets
        for at in range(chosen.pointer[request], chosen.pointer[request + 1]):
            row = chosen.leaf[at] * facets + chosen.facet[at]
            times = chosen.voter_pointer[at + 1] - chosen.voter_pointer[at] if how.per_trigger else 1
            mine += min(how.limit, pool.length[row]) * times + _PAD
        most = max(most, mine)
    return most


@njit(cache=True, nogil=True)
def _weigh(how: A, prior: A, scores: A, to: int, count: int) -> None:
    """Similarities, from ``scores[to]`` on, to scores; ``prior`` are those of the members."""
    weight, some = np.float32(how.similarity_weight), scores[to : to + count]
    for i in range(some.shape[0]):
        some[i] = some[i] * weight + prior[i]


@njit(cache=True, nogil=True)
def _read_leaves(asked: A, chosen: A, pool: A, filters: A, how: A, room: A, request: int, skips: A) -> int:
    """One piece a leaf: each member scored by the greatest similarity to a trigger that voted for it."""
    facets, first, end, scored = pool.place.shape[1], asked.pointer[request], 0, 0
    begin, slots = chosen.pointer[request], chosen.pointer[request + 1] - chosen.pointer[request]
    weights = how.learned_weight or how.engagement_weight or how.freshness_weight
    plain = how.similarity_weight == 1 and not weights
    for slot in range(slots):
        at = begin + slot
        following = 0, 0
        if slot + 1 < slots:
            following = announce(pool, chosen.leaf[at + 1] * facets + chosen.facet[at + 1], how.limit)
        row = chosen.leaf[at] * facets + chosen.facet[at]
        count = read(pool, filters, request, row, how.limit, skips, room.at, end)
        for v in range(chosen.voter_pointer[at], chosen.voter_pointer[at + 1]):
            query = asked.vectors[first + chosen.voters[v], chosen.facet[at]]
            again = v > chosen.voter_pointer[at]
            ahead = (0, 0) if again else following
            similarities(pool.bits, room.at, end, count, query, room.scores, end, not again, ahead)
        if not plain:
            priors(pool, how, room.at, end, count, room.prior)
            _weigh(how, room.prior, room.scores, end, count)
        room.pieces[slot, 0], room.pieces[slot, 1], room.pieces[slot, 2] = end, end + count, slot
        end += count
        scored += count
    return scored


@njit(cache=True, nogil=True)
def _read_lists(asked: A, chosen: A, pool: A, filters: A, how: A, room: A, request: int, skips: A) -> A:
    """One piece for each leaf and trigger that voted for it, those of a trigger and facet side by side, only its best.

    Returns:
        how many pieces, and how many members were scored.
    """
    facets, first, scored = pool.place.shape[1], asked.pointer[request], 0
    begin, slots = chosen.pointer[request], chosen.pointer[request + 1] - chosen.pointer[request]
    lists = (asked.pointer[request + 1] - first) * facets
    space, many = np.zeros(lists + 1, np.int64), np.zeros(lists + 1, np.int64)
    for at in range(begin, begin + slots):
        rows = min(how.limit, pool.length[chosen.leaf[at] * facets + chosen.facet[at]])
        for v in range(chosen.voter_pointer[at], chosen.voter_pointer[at + 1]):
            which = chosen.voters[v] * facets + chosen.facet[at]
            space[which + 1] += rows
            many[which + 1] += 1
    for which in range(lists):
        space[which + 1] += space[which] + _PAD
        many[which + 1] += many[which]
    end, piece = space[:lists].copy(), many[:lists].copy()
    for slot in range(slots):
        at = begin + slot
        following = 0, 0
        if slot + 1 < slots:
            following = announce(pool, chosen.leaf[at + 1] * facets + chosen.facet[at + 1], how.limit)
        row = chosen.leaf[at] * facets + chosen.facet[at]
        count = read(pool, filters, request, row, how.limit, skips, room.read, 0)
        priors(pool, how, room.read, 0, count, room.prior)
        for v in range(chosen.voter_pointer[at], chosen.voter_pointer[at + 1]):
            which = chosen.voters[v] * facets + chosen.facet[at]
            to, query = end[which], asked.vectors[first + chosen.voters[v], chosen.facet[at]]
            similarities(pool.bits, room.read, 0, count, query, room.scores, to, True, following)
            following = 0, 0
            _weigh(how, room.prior, room.scores, to, count)
            room.at[to : to + count] = room.read[:count]
            mine = room.pieces[piece[which]]
            mine[0], mine[1], mine[2] = to, to + count, slot
            end[which] += count
            piece[which] += 1
        scored += count
    kept = 0
    for which in range(lists):
        if many[which] < many[which + 1]:
            kept = _cut(pool, room, many[which], many[which + 1], how.per_trigger, kept)
    return many[lists], scored


@njit(cache=True, nogil=True)
def _cut(pool: A, room: A, first: int, last: int, wanted: int, to: int) -> int:
    """Move the best entries of the pieces from the first to before the last, which stand side by side, to ``to``.

    Returns:
        the end of what was moved.
    """
    scores, at = room.scores, room.at
    begin, end = room.pieces[first, 0], room.pieces[last - 1, 1]
    n, limit = best(scores, begin, end, wanted, pool.ordinal, at, room.keys, room.picked)
    j = 0
    for piece in range(first, last):
        start, stop = to, room.pieces[piece, 1]
        while j < n and room.picked[j] < stop:
            i = room.picked[j]
            if limit == 0 or ranked(scores[i], pool.ordinal[at[i]]) >= limit:
                scores[to], at[to] = scores[i], at[i]
                to += 1
            j += 1
        room.pieces[piece, 0], room.pieces[piece, 1] = start, to
    return to


@njit(cache=True, nogil=True)
def _shares(chosen: A, pool: A, how: A, room: A, request: int) -> None:
    """Find what is within its leaf's share: entries that reach ``room.limits``, all of which are in the filter."""
    begin, slots = chosen.pointer[request], chosen.pointer[request + 1] - chosen.pointer[request]
    total = 0.0
    for at in range(begin, begin + slots):
        total += chosen.weight[at]
    room.bloom[:] = 0
    for slot in range(slots):
        quota = max(1, int(np.rint(how.share * how.k * chosen.weight[begin + slot] / max(total, 1e-12))))
        first, last = room.pieces[slot, 0], room.pieces[slot, 1]
        n, limit = best(room.scores, first, last, quota, pool.ordinal, room.at, room.keys, room.picked)
        room.limits[slot] = limit
        for j in range(n):
            i = room.picked[j]
            ordinal = np.int64(pool.ordinal[room.at[i]])
            if limit == 0 or ranked(room.scores[i], ordinal) >= limit:
                room.bloom[(ordinal % BLOOM) >> 6] |= np.uint64(1) << np.uint64(ordinal & 63)


@njit(cache=True, nogil=True)
def _candidates(pool: A, room: A, pieces: int, least: A, shared: bool) -> int:
    """Entries that may be results, as sorted keys: those that reach the least, and what is or may be within a share."""
    scores, at, n = room.scores, room.at, 0
    for piece in range(pieces):
        begin, end, slot = room.pieces[piece, 0], room.pieces[piece, 1], room.pieces[piece, 2]
        first = n
        if shared:
            for i in range(begin, end):
                ordinal = np.int64(pool.ordinal[at[i]])
                maybe = room.bloom[(ordinal % BLOOM) >> 6] >> np.uint64(ordinal & 63) & np.uint64(1)
                room.picked[n] = i
                n += (scores[i] >= least) | (maybe != 0)
        else:
            n = reach(scores, begin, end, least, room.picked, n)
        for j in range(first, n):
            i = room.picked[j]
            ordinal = pool.ordinal[at[i]]
            within = shared and ranked(scores[i], ordinal) >= room.limits[slot]
            room.keys[j] = key_of(scores[i], 2 * j + within)
            room.who[j], room.slot[j] = ordinal, slot
    sort(room.keys, room.rest, n)
    order_equals(room.keys, n, room.who)
    return n


@njit(cache=True, nogil=True)
def _unite(chosen: A, room: A, found: A, request: int, n: int, k: int, shared: bool) -> int:
    """The results, of n candidates in order: first what is within a share, then the best of the rest.

    Returns:
        how many more there was room for.
    """
    table, keys, who, mask, within = room.table, room.keys, room.who, 63, 0
    while mask < 2 * n:
        mask = 2 * mask + 1
    if room.generation[0] >= 1 << 31:
        room.generation[0] = 0
        table[:] = 0
    room.generation[0] += 1
    generation = room.generation[0]
    for at in range(n if shared else 0):
        if within < k and keys[at] & np.uint64(1):
            ordinal = np.int64(who[index_of(keys[at])])
            to = find(table, mask, generation, ordinal)
            if table[to, 0] != generation:
                table[to, 0], table[to, 1], table[to, 2] = generation, ordinal, _WANTED
                within += 1
    others, count, begin, scores = k - within, 0, chosen.pointer[request], found.score[request]
    ordinals, facets, leaves = found.where[0, request], found.where[1, request], found.where[2, request]
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
        scores[count], ordinals[count] = score_of(keys[at]), ordinal
        facets[count] = chosen.facet[begin + room.slot[index]]
        leaves[count] = chosen.leaf[begin + room.slot[index]]
        count += 1
        if count == k:
            break
    found.counts[0, request] = count
    return others


@njit(cache=True, nogil=True)
def score_each(room: A, asked: A, chosen: A, pool: A, filters: A, how: A, found: A) -> A:
    """As :func:`score`, of named tuples."""
    most = _need(asked, chosen, pool, how)
    if most > room.at.shape[0]:
        return most
    for request in range(asked.pointer.shape[0] - 1):
        skips = asked.skip[asked.skip_pointer[request] : asked.skip_pointer[request + 1]]
        places = np.empty(skips.shape[0] * pool.place.shape[1], np.int64)
        places = places[: left_out(pool, skips, places)]
        shared = False
        if how.per_trigger:
            pieces, scored = _read_lists(asked, chosen, pool, filters, how, room, request, places)
        else:
            pieces = chosen.pointer[request + 1] - chosen.pointer[request]
            scored = _read_leaves(asked, chosen, pool, filters, how, room, request, places)
            shared = how.share > 0
        if shared:
            _shares(chosen, pool, how, room, request)
        entries = room.pieces[pieces - 1, 1] if pieces else 0
        wanted = how.k + how.k // 8  # somewhat more than are wanted, as an item may be there more than once
        while True:
            least = floor_of(room.scores[:entries], wanted, wanted // 8 + 16)
            n = _candidates(pool, room, pieces, least, shared)
            if not _unite(chosen, room, found, request, n, how.k, shared) or least == -np.inf:
                break
            wanted *= 4
        found.counts[1, request] = scored
    return 0


@njit(cache=True, nogil=True)
def score(words: A, table: A, generation: A, p: int, e: int, *given: A) -> A:
    """Score the first members of each chosen leaf and keep the best, each leaf, or each trigger, with its share.

    Args:
        words, table, generation, p, e: of :class:`indexer.retrieval.room.Scratch`.
        given: the fields of :class:`Triggers`, :class:`Chosen`, :class:`Pool`, :class:`Filters`, :class:`How`,
            :class:`Found`.

    Returns:
        0; or, where the room is too small and nothing was done, for how many entries it must be.
    """
    asked, chosen, pool = Triggers(*given[:5]), Chosen(*given[5:11]), Pool(*given[11:24])
    filters, how, found = Filters(*given[24:28]), How(*given[28:42]), Found(*given[42:])
    return score_each(parted(words, table, generation, p, e), asked, chosen, pool, filters, how, found)
