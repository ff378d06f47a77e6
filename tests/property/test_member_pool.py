"""Posting lists with their embeddings against plain lists: whatever comes, goes, is engaged, moved and sorted."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.members import MemberPool
from indexer.order import impact_of

FACETS, DIM, ITEMS = 2, 3, 40
HALF_LIFE_S = 60


class Lists:
    """The same as one Python list of ordinals a row."""

    def __init__(self, rows: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(rows)]
        self.vectors = np.zeros((ITEMS, FACETS, DIM), np.float16)
        self.heat = np.zeros(ITEMS, np.float32)
        self.created_at = np.zeros(ITEMS, np.int64)
        self.leaf = np.zeros((ITEMS, FACETS), np.uint32)

    def row_of(self, ordinal: int, facet: int) -> int:
        return int(self.leaf[ordinal, facet]) * FACETS + facet

    def live(self) -> list[int]:
        return sorted({ordinal for row in self.rows for ordinal in row})

    def impact(self, ordinals: list[int]) -> Any:
        at = np.array(ordinals, np.int64)
        return impact_of(self.heat[at], self.created_at[at], 1.0, HALF_LIFE_S, 0)

    def sort(self, row: int) -> None:
        held = self.rows[row]
        order = np.lexsort((-np.array(held, np.int64), -self.impact(held)))
        self.rows[row] = [held[at] for at in order.tolist()]


def same(pool: MemberPool, lists: Lists) -> None:
    ends = []
    for row, held in enumerate(lists.rows):
        facet = row % FACETS
        assert pool.row(row).tolist() == held
        assert pool.place[held, facet].tolist() == list(range(len(held)))
        at = slice(pool.start[row], pool.start[row] + len(held))
        np.testing.assert_array_equal(pool.heat[at], lists.heat[held])
        np.testing.assert_array_equal(pool.bits[at].view(np.float16), lists.vectors[held, facet])
        assert pool.length[row] == len(held) <= pool.room[row]
        if pool.room[row]:
            ends.append((int(pool.start[row]), int(pool.start[row] + pool.room[row])))
    ends.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))


@given(st.data())
def test_a_pool_holds_what_plain_lists_hold(data: st.DataObject) -> None:
    leaves = data.draw(st.integers(1, 4))
    pool, lists = MemberPool(FACETS, DIM), Lists(leaves * FACETS)
    pool.ensure_rows(leaves * FACETS)
    pool.ensure_items(ITEMS)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    for _ in range(data.draw(st.integers(1, 12))):
        live = lists.live()
        step = data.draw(st.sampled_from(["append", "append", "remove", "take", "sort", "engage", "embed"]))
        if step == "append":
            free = [ordinal for ordinal in range(ITEMS) if ordinal not in live]
            new = np.array(rng.permutation(free)[: data.draw(st.integers(0, ITEMS))], np.int64)
            lists.leaf[new] = rng.integers(0, leaves, (len(new), FACETS))
            lists.vectors[new] = rng.standard_normal((len(new), FACETS, DIM))
            lists.created_at[new] = rng.choice([0, 60_000, 120_000, 10**9], len(new))
            for facet in range(FACETS):
                rows = lists.leaf[new, facet].astype(np.int64) * FACETS + facet
                pool.append(rows, new, lists.vectors[new, facet], lists.heat[new])
                for row, ordinal in zip(rows.tolist(), new.tolist(), strict=True):
                    lists.rows[row].append(ordinal)
        elif step == "remove" and live:
            gone = np.array(rng.permutation(live)[: data.draw(st.integers(1, len(live)))], np.int64)
            for facet in range(FACETS):
                pool.remove(lists.leaf[gone, facet].astype(np.int64) * FACETS + facet, gone)
            gone_set = set(gone.tolist())
            lists.rows = [[ordinal for ordinal in row if ordinal not in gone_set] for row in lists.rows]
        elif step == "take" and leaves > 1:
            # what a split does: a row is emptied and its members go elsewhere
            facet, leaf = data.draw(st.integers(0, FACETS - 1)), data.draw(st.integers(0, leaves - 1))
            row, to = leaf * FACETS + facet, (leaf + 1) % leaves * FACETS + facet
            ordinals, vectors, heats = pool.take(row)
            assert ordinals.tolist() == lists.rows[row]
            pool.append(np.full(len(ordinals), to), ordinals, vectors, heats)
            lists.rows[to] += lists.rows[row]
            lists.leaf[lists.rows[row], facet] = (leaf + 1) % leaves
            lists.rows[row] = []
        elif step == "sort":
            rows = np.flatnonzero(pool.length[: leaves * FACETS])
            pool.sort(rows, lists.created_at, 1.0, HALF_LIFE_S, 0)
            for row in rows.tolist():
                lists.sort(row)
        elif step == "engage" and live:
            engaged = np.array(rng.permutation(live)[: data.draw(st.integers(1, len(live)))], np.int64)
            lists.heat[engaged] += rng.choice([0.5, 1.0, 1e6], len(engaged)).astype(np.float32)
            pool.engage(lists.leaf, engaged, lists.heat[engaged])
        elif step == "embed" and live:
            ordinals = np.array(live, np.int64)
            lists.vectors[ordinals] = rng.standard_normal((len(live), FACETS, DIM))
            pool.load_vectors(lists.leaf, ordinals, lists.vectors[ordinals])
        same(pool, lists)


@given(seed=st.integers(0, 1 << 32), count=st.integers(0, 300), tied=st.booleans())
def test_a_row_is_sorted_however_far_from_order_it_is(seed: int, count: int, *, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    pool = MemberPool(1, 2)
    pool.ensure_rows(1)
    pool.ensure_items(count)
    heats = (rng.integers(0, 3, count) if tied else rng.random(count)).astype(np.float32)
    created = np.sort(rng.integers(0, 10**6, count)) if rng.random() < 0.5 else rng.integers(0, 10**6, count)
    ordinals = np.arange(count) if rng.random() < 0.5 else rng.permutation(count)
    vectors = rng.standard_normal((count, 2)).astype(np.float16)
    pool.append(np.zeros(count, np.int64), ordinals, vectors, heats[ordinals])
    pool.sort(np.zeros(1, np.int64), created, 1.0, HALF_LIFE_S, 0)
    expected = np.lexsort((-np.arange(count), -impact_of(heats, created, 1.0, HALF_LIFE_S, 0)))
    assert pool.row(0).tolist() == expected.tolist()
    order = np.empty(count, np.int64)
    order[ordinals] = np.arange(count)
    np.testing.assert_array_equal(pool.vectors(np.zeros(count, np.int64), np.arange(count)), vectors[order])


def test_a_pool_built_at_once_is_as_one_filled_step_by_step() -> None:
    rng = np.random.default_rng(0)
    leaf = rng.integers(0, 5, (ITEMS, FACETS)).astype(np.uint32)
    vectors = rng.standard_normal((ITEMS, FACETS, DIM)).astype(np.float16)
    heats, created = rng.random(ITEMS).astype(np.float32), np.arange(ITEMS)
    one, other = MemberPool(FACETS, DIM), MemberPool(FACETS, DIM)
    every = np.arange(ITEMS)
    rows = leaf.astype(np.int64) * FACETS + np.arange(FACETS)
    for pool in (one, other):
        pool.ensure_rows(5 * FACETS)
        pool.ensure_items(ITEMS)
    for facet in range(FACETS):
        one.append(rows[:, facet], every, vectors[:, facet], heats)
    other.build(np.ones(ITEMS, np.bool_), leaf, heats)
    other.sort(np.flatnonzero(other.length), created, 1.0, HALF_LIFE_S, 0, bare=True)
    other.load_vectors(leaf, every, vectors)
    one.sort(np.flatnonzero(one.length), created, 1.0, HALF_LIFE_S, 0)
    for row in range(5 * FACETS):
        assert one.row(row).tolist() == other.row(row).tolist()
        held = one.row(row).astype(np.int64)
        at = np.full(len(held), row)
        np.testing.assert_array_equal(one.vectors(at, held), other.vectors(at, held))


def test_a_pool_that_was_made_ready_is_not_copied_while_readers_wait() -> None:
    dice, items, leaves, copied = np.random.default_rng(3), 40_000, 60, 0
    pool = MemberPool(FACETS, DIM)
    pool.ensure_rows(leaves * FACETS)
    pool.ensure_items(items)
    vectors = dice.standard_normal((items, FACETS, DIM)).astype(np.float16)
    heats = dice.random(items).astype(np.float32)
    leaf = (leaves * dice.random((items, FACETS)) ** 3).astype(np.uint32)
    rows = leaf.astype(np.int64) * FACETS + np.arange(FACETS)
    for first in range(0, items, 100):
        new = np.arange(first, first + 100)
        was = pool.bits
        pool.readied(rows[new].ravel())()
        copied += pool.bits is not was
        ready = pool.bits
        for facet in range(FACETS):
            pool.append(rows[new, facet], new, vectors[new, facet], heats[new])
        assert pool.bits is ready
    assert copied > 5
    for row in range(leaves * FACETS):
        facet = row % FACETS
        held = np.flatnonzero(rows[:, facet] == row)
        assert pool.row(row).tolist() == held.tolist()
        at = slice(pool.start[row], pool.start[row] + len(held))
        np.testing.assert_array_equal(pool.bits[at].view(np.float16), vectors[held, facet])
        np.testing.assert_array_equal(pool.heat[at], heats[held])
