"""Rebalancing: it always comes to rest, within bounds or marked, and nobody ever sees it half done."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.index import Index
from indexer.keys import ItemState, LeafState
from indexer.rebalance.apply import apply_bounds, apply_plan
from indexer.rebalance.compactor import out_of_bounds
from indexer.rebalance.plan import plan_round
from indexer.rebalance.plans import MarkPlan, MergePlan, SplitPlan
from indexer.retrieval.readers import ViewReader
from tests.builders import (
    DIM,
    FACETS,
    Record,
    assert_sound,
    assert_view_is_loaded,
    batch_of,
    config,
    fill,
    open_index,
    rebalance,
    upserts,
    vector_of,
)


def assert_at_rest(index: Index) -> None:
    """Strictly within bounds or marked, and a second look finds nothing to do."""
    assert_sound(index.store)
    assert_view_is_loaded(index)
    assert index.compactor(config()).round().idle


# A step: how many items, drawn from how many distinct vectors, and what happens to them.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "delete", "delete all", "move", "rebalance", "reopen"]),
        st.integers(1, 60),
        st.sampled_from([1, 2, 5, 1_000]),
    ),
    min_size=1,
    max_size=12,
)


@given(steps=STEPS, low=st.integers(1, 5), ratio=st.sampled_from([2, 3, 8]), seed=st.integers(0, 1_000))
def test_it_comes_to_rest_within_bounds_whatever_came_and_went(
    steps: list[tuple[str, int, int]], low: int, ratio: int, seed: int
) -> None:
    chosen = config(rebalance={"low": low, "high": low * ratio})
    rng = np.random.default_rng(seed)
    offset, alive = 0, []
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(Path(folder, "store"), chosen)
        try:
            for what, count, distinct in [*steps, ("rebalance", 0, 0)]:
                records: list[Record] = []
                if what == "add":
                    records = upserts(rng.integers(0, distinct, count).tolist(), start=offset)
                    alive += [record.item_id for record in records]
                elif what in {"delete", "delete all", "move"} and alive:
                    picked = alive if what == "delete all" else rng.permutation(alive)[:count].tolist()
                    moves = what == "move"
                    records = [
                        Record(
                            "items-0", offset + row, name, 10**6 + offset, vector_of(distinct + row) if moves else None
                        )
                        for row, name in enumerate(picked)
                    ]
                    alive = alive if moves else [name for name in alive if name not in set(picked)]
                elif what == "rebalance":
                    index.compactor(chosen).run_until_idle()
                    assert_sound(index.store)
                    assert out_of_bounds(index.view) == 0
                    assert index.compactor(chosen).round().idle
                elif what == "reopen":
                    index.close()
                    index = open_index(Path(folder, "store"), chosen)
                offset += len(records)
                index.writer.apply(batch_of(records))
                assert_view_is_loaded(index)
                assert_sound(index.store, allow_unbalanced=True)
            assert index.view.totals.items_live == len(alive)
        finally:
            index.close()


def with_index(path: Path, **rebalancing: Any) -> tuple[Index, Any]:
    chosen = config(rebalance={"low": 2, "high": 8} | rebalancing)
    index = open_index(path / "store", chosen)
    return index, chosen


def sizes(index: Index, facet: int = 0) -> list[int]:
    view = index.view.facets[facet]
    return sorted(view.sizes()[view.alive()].tolist())


def test_identical_items_are_marked_once_and_tried_again_after_growing_by_half(tmp_path: Path) -> None:
    index, chosen = with_index(tmp_path)
    with index:
        fill(index, [7] * 20)
        rebalance(index, chosen)
        assert sizes(index) == [20]
        [leaf] = index.view.facets[0].alive().tolist()
        assert index.view.facets[0].leaves["state"][leaf] == LeafState.UNSPLITTABLE
        assert_at_rest(index)
        journal = index.view.totals.journal_seq
        fill(index, [7] * 10, start=20)  # 30 is not yet more than half more
        rebalance(index, chosen)
        assert index.view.totals.journal_seq == journal
        assert_sound(index.store)
        fill(index, [7], start=30)
        rebalance(index, chosen)
        assert index.view.facets[0].leaves["marked_size"][leaf] == 31
        assert_at_rest(index)
        fill(index, [8, 9, 10] * 6, start=31)
        rebalance(index, chosen)
        assert max(sizes(index)) <= 31
        assert_at_rest(index)


def test_one_giant_raw_index_is_split_into_many_leaves_of_its_own(tmp_path: Path) -> None:
    index, chosen = with_index(tmp_path)
    with index:
        near = [
            Record("items-0", row, f"i{row}", row, tuple(np.float16(1 + row / 1_024) for _ in range(FACETS * DIM)))
            for row in range(300)
        ]
        near = [record._replace(vector=tuple(map(float, record.vector or ()))) for record in near]
        index.writer.apply(batch_of(near))
        [raw] = np.unique(index.view.items["raw"][:, 0]).tolist()
        rebalance(index, chosen)
        candidates = index.view.facets[0].routes.row(raw)
        assert len(candidates) >= 300 / 8
        assert set(candidates.tolist()) == set(index.view.facets[0].alive().tolist())
        assert_at_rest(index)
        more = [record._replace(offset=300 + row, item_id=f"j{row}") for row, record in enumerate(near)]
        index.writer.apply(batch_of(more))
        rebalance(index, chosen)
        assert_at_rest(index)


def test_everything_deleted_leaves_one_empty_marked_leaf_a_facet(tmp_path: Path) -> None:
    index, chosen = with_index(tmp_path)
    with index:
        fill(index, range(100))
        rebalance(index, chosen)
        index.writer.apply(batch_of([Record("items-0", 100 + row, f"i{row}", 10**6) for row in range(100)]))
        rebalance(index, chosen)
        for facet in range(FACETS):
            assert sizes(index, facet) == [0]
            assert index.view.facets[facet].leaves["state"][index.view.facets[facet].alive()] == LeafState.FEW_ITEMS
        assert_at_rest(index)
        fill(index, range(100, 200), start=200)
        rebalance(index, chosen)
        assert_at_rest(index)


def test_a_facet_with_fewer_items_than_the_lower_bound_is_marked(tmp_path: Path) -> None:
    index, chosen = with_index(tmp_path)
    with index:
        fill(index, [1])
        rebalance(index, chosen)
        assert_at_rest(index)
        fill(index, [1, 2, 3], start=1)
        rebalance(index, chosen)
        assert_at_rest(index)


def test_items_that_come_and_go_do_not_make_leaves_flap(tmp_path: Path) -> None:
    index, chosen = with_index(tmp_path)
    with index:
        fill(index, range(60))
        rebalance(index, chosen)
        before = index.view.totals
        offset, moment = 60, 10**6
        for _ in range(10):  # a leaf at its bound loses an item and gets it back
            gone = [Record("items-0", offset, "i3", moment)]
            back = [Record("items-0", offset + 1, "i3", moment + 1, vector_of(3))]
            for records in (gone, back):
                index.writer.apply(batch_of(records))
                rebalance(index, chosen)
                assert_sound(index.store)
            offset, moment = offset + 2, moment + 2
        assert index.view.totals.splits - before.splits <= 2
        assert index.view.totals.merges - before.merges <= 2
        assert_at_rest(index)


def test_merges_go_step_by_step_where_that_is_asked_for_in_every_facet_at_once(tmp_path: Path) -> None:
    index, chosen = with_index(tmp_path, low=16, high=64)
    with index:
        fill(index, range(100))
        plans = [
            plan
            for plan in plan_round(index.view, (16, 64), chosen.rebalance, merges=True, merge_items=3)
            if isinstance(plan, MergePlan)
        ]
        gone: Counter[int] = Counter()
        for plan in plans:
            gone[plan.facet] += len(plan.leaves)
        assert all(1 <= gone[facet] <= 3 for facet in range(FACETS)), gone

        compactor = index.compactor(chosen)
        while not compactor.round(merge_items=3).idle:
            assert_view_is_loaded(index)
        assert_sound(index.store)
        assert compactor.round().idle


def test_bounds_follow_the_number_of_items_when_they_are_not_configured(tmp_path: Path) -> None:
    chosen = config(rebalance={})
    index = open_index(tmp_path / "store", chosen)
    with index:
        rng = np.random.default_rng(5)
        seeds = rng.integers(0, 40, 1_500).tolist()
        fill(index, seeds)
        assert index.view.totals.bounds == (4, 64)
        rebalance(index, chosen)
        assert index.view.totals.bounds == (8, 128)
        assert_sound(index.store)
        assert_view_is_loaded(index)
        index.writer.apply(batch_of([Record("items-0", 1_500 + row, f"i{row}", 10**6) for row in range(1_400)]))
        rebalance(index, chosen)
        assert index.view.totals.bounds == (8, 128)  # one step too high is kept, so that they do not flap
        assert_sound(index.store)


def test_a_split_plan_serves_those_who_came_and_left_since(tmp_path: Path) -> None:
    index, chosen = with_index(tmp_path, high=20)
    with index:
        near = [vector_of(1)] * 10 + [vector_of(2)] * 12
        raw_twins = [Record("items-0", row, f"i{row}", row, vector) for row, vector in enumerate(near)]
        index.writer.apply(batch_of(raw_twins))
        apply_bounds(index.writer, (2, 20))
        facet = index.view.facets[0]
        while len(facet.alive()) > 1:  # all in one leaf, so that it splits
            first, *others = facet.alive().tolist()
            versions = tuple(facet.leaves["version"][[first, *others]].tolist())
            apply_plan(index.writer, MergePlan(0, first, tuple(others), versions), (2, 20))
        [plan] = [
            plan
            for plan in plan_round(index.view, (2, 20), chosen.rebalance, merges=False)
            if isinstance(plan, SplitPlan) and plan.facet == 0
        ]
        index.writer.apply(
            batch_of(
                [
                    Record("items-0", 22, "i0", 10**6),
                    Record("items-0", 23, "new", 10**6, vector_of(2)),
                    Record("items-0", 24, "i21", 10**6),
                ]
            )
        )
        outcome = apply_plan(index.writer, plan, (2, 20))
        assert outcome.applied
        assert outcome.moved == 21
        assert_view_is_loaded(index)
        assert_sound(index.store, allow_unbalanced=True)
        assert not apply_plan(index.writer, plan, (2, 20)).applied  # twice is once


def test_a_plan_whose_leaf_is_gone_or_changed_hands_is_dropped(tmp_path: Path) -> None:
    index, chosen = with_index(tmp_path)
    with index:
        fill(index, range(40))
        old = list(plan_round(index.view, (2, 8), chosen.rebalance, merges=True))
        assert {type(plan) for plan in old} >= {MergePlan}
        rebalance(index, chosen)
        for plan in old:
            assert not apply_plan(index.writer, plan, (2, 8)).applied
        merge = next(plan for plan in old if isinstance(plan, MergePlan))
        mark = MarkPlan(merge.facet, merge.leaves[0], 0, LeafState.UNSPLITTABLE)
        assert not apply_plan(index.writer, mark, (2, 8)).applied
        assert_at_rest(index)


def test_a_mark_is_not_put_on_a_leaf_that_others_joined_since(tmp_path: Path) -> None:
    index, _ = with_index(tmp_path)
    with index:
        fill(index, range(12))
        facet = index.view.facets[0]
        target, other = facet.alive()[:2].tolist()
        mark = MarkPlan(0, target, int(facet.leaves["version"][target]), LeafState.UNSPLITTABLE)
        versions = tuple(facet.leaves["version"][[target, other]].tolist())
        assert apply_plan(index.writer, MergePlan(0, target, (other,), versions), (2, 8)).applied
        assert not apply_plan(index.writer, mark, (2, 8)).applied
        assert_view_is_loaded(index)


def test_a_split_plan_is_dropped_when_most_of_its_members_left(tmp_path: Path) -> None:
    index, chosen = with_index(tmp_path, low=1, high=2)
    with index:
        index.writer.apply(batch_of(upserts([1, 1, 1, 1, 1, 1])))
        apply_bounds(index.writer, (1, 2))
        every, rows = np.arange(6), index.view.facets[0].members.rows(index.view.items["leaf"][:, 0])
        vectors = index.view.vectors(every, 0)
        vectors[:, 0] += np.arange(6, dtype=np.float16) / 64  # tell them apart in this facet
        index.view.members.renew(rows, every, vectors, index.view.heats(every))
        [plan] = [
            plan
            for plan in plan_round(index.view, (1, 2), chosen.rebalance, merges=False)
            if isinstance(plan, SplitPlan) and plan.facet == 0
        ]
        index.writer.apply(batch_of([Record("items-0", 6 + row, f"i{row}", 10**6) for row in range(4)]))
        assert not apply_plan(index.writer, plan, (1, 2)).applied


@settings(max_examples=5)
@given(seed=st.integers(0, 10_000))
def test_readers_find_every_item_in_exactly_one_leaf_a_facet_while_leaves_split_and_merge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = config(rebalance={"low": 2, "high": 8, "round_items": 20})
    with tempfile.TemporaryDirectory() as folder, open_index(Path(folder, "store"), chosen) as index:
        fill(index, rng.integers(0, 200, 300).tolist())
        stop, faults, looks = threading.Event(), [], Counter[str]()

        def look() -> None:
            view, reader = index.view, ViewReader(index.view)
            while not stop.is_set():
                for facet in range(FACETS):
                    with view.lock:
                        live = np.flatnonzero(view.items["state"] == ItemState.LIVE)
                        alive = view.facets[facet].alive()
                        found, counts = view.facets[facet].members.gather(alive)
                        where = np.repeat(alive, counts)
                        order = np.argsort(found)
                        if found[order].tolist() != live.tolist():
                            faults.append(f"facet {facet}: {len(live)} live items, {len(found)} postings")
                        elif (view.items["leaf"][live, facet] != where[order]).any():
                            faults.append(f"facet {facet}: an item's leaf is not the one that holds it")
                    with reader.frozen():
                        through = np.concatenate(
                            [reader.members(facet, leaf, 10**6) for leaf in alive_of(reader, facet)]
                        )
                        if sorted(through.tolist()) != live_of(view):
                            faults.append(f"facet {facet}: the reader sees {len(through)} members")
                looks["looks"] += 1

        def alive_of(reader: ViewReader, facet: int) -> list[int]:
            table = reader.centroids()
            return table.leaf[table.pointer[facet] : table.pointer[facet + 1]].tolist()

        def live_of(view: Any) -> list[int]:
            return np.flatnonzero(view.items["state"] == ItemState.LIVE).tolist()

        thread = threading.Thread(target=look)
        thread.start()
        try:
            offset = 300
            for _ in range(6):
                rebalance(index, chosen)
                records = upserts(rng.integers(0, 200, 40).tolist(), start=offset)
                gone = [
                    Record("items-0", offset + 40 + row, f"i{name}", 10**6)
                    for row, name in enumerate(rng.permutation(offset)[:40].tolist())
                ]
                index.writer.apply(batch_of([*records, *gone]))
                offset += 80
            rebalance(index, chosen)
        finally:
            stop.set()
            thread.join()
        assert not faults, faults[:3]
        assert looks["looks"] > 0
        assert_at_rest(index)


@pytest.mark.parametrize(
    ("live", "current", "expected"),
    [
        (0, (4, 64), (4, 64)),
        (1_024, (4, 64), (4, 64)),
        (1_025, (4, 64), (8, 128)),
        (1_000, (8, 128), (8, 128)),  # one step too high is kept
        (200, (8, 128), (8, 128)),
        (200, (16, 256), (4, 64)),  # two steps too high is not
        (10**8, (4, 64), (2_048, 32_768)),
        (200, (10, 100), (4, 64)),  # bounds that were once configured
    ],
)
def test_derived_bounds(live: int, current: tuple[int, int], expected: tuple[int, int]) -> None:
    from indexer.rebalance.bounds import bounds_for

    assert bounds_for(config(rebalance={}).rebalance, live, current) == expected
