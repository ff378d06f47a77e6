"""Rebalancing against what it does not like: masses, giants, oscillation, and plans that the world overtook."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.index import Index
from indexer.keys import LeafState
from indexer.rebalance.apply import apply_bounds, apply_plan
from indexer.rebalance.compactor import out_of_bounds
from indexer.rebalance.merge import plan_merges
from indexer.rebalance.plan import plan_round, splits_due
from indexer.rebalance.plans import MergePlan, Outcome, Plan, ReassignPlan, RecenterPlan, SplitPlan
from indexer.rebalance.reassign import plan_reassign
from indexer.rebalance.split import plan_split
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
    vector_of,
)


class Stream:
    """Records of one partition, written as they come."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._offset = 0

    def put(self, named: dict[str, tuple[float, ...] | None]) -> None:
        """Items by id; None deletes."""
        at = [(self._offset + row, name, vector) for row, (name, vector) in enumerate(named.items())]
        self._index.writer.apply(batch_of([Record("items-0", offset, name, offset, v) for offset, name, v in at]))
        self._offset += len(at)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with open_index(tmp_path / "store") as opened:
        apply_bounds(opened.writer, (2, 8))
        yield opened


def near(row: int) -> tuple[float, ...]:
    """Different embeddings of one raw index."""
    return tuple(float(np.float16(1 + row / 2_048)) for _ in range(FACETS * DIM))


def plans(index: Index, **rebalancing: Any) -> list[Plan]:
    chosen = config(rebalance={"low": 2, "high": 8} | rebalancing)
    return list(plan_round(index.view, (2, 8), chosen.rebalance, merges=True))


def entries(index: Index) -> list[dict[str, Any]]:
    return [orjson.loads(value) for _, value in index.store.scan("journal")]


def one_leaf(index: Index, facet: int = 0) -> int:
    """Everything of a facet into one leaf, whatever its size."""
    view = index.view.facets[facet]
    while len(view.alive()) > 1:
        first, *others = view.alive().tolist()
        versions = tuple(view.leaves["version"][[first, *others]].tolist())
        assert apply_plan(index.writer, MergePlan(facet, first, tuple(others), versions), (2, 8)).applied
    return int(view.alive()[0])


def at_rest(index: Index, **rebalancing: Any) -> None:
    chosen = config(rebalance={"low": 2, "high": 8} | rebalancing)
    assert_sound(index.store)
    assert_view_is_loaded(index)
    assert out_of_bounds(index.view) == 0
    assert index.compactor(chosen).round().idle


def test_thousands_of_identical_items_are_marked_and_nothing_loops(index: Index) -> None:
    stream = Stream(index)
    stream.put({f"same{row}": vector_of(7) for row in range(3_000)})
    rebalance(index)
    stream.put({f"other{row}": vector_of(100 + row) for row in range(300)})
    rebalance(index)
    at_rest(index)
    before = len(entries(index))
    for _ in range(5):
        rebalance(index)
    assert len(entries(index)) == before
    stuck = [f.leaves["state"][f.alive()] == LeafState.UNSPLITTABLE for f in index.view.facets]
    assert all(each.any() for each in stuck)
    stream.put({f"more{row}": vector_of(7) for row in range(1_000)})  # not half more: left alone
    journal = len(entries(index))
    rebalance(index)
    assert not any(entry["op"] in {"split", "mark"} for entry in entries(index)[journal:])
    stream.put({f"same{row}": None for row in range(3_000)} | {f"more{row}": None for row in range(1_000)})
    rebalance(index)
    at_rest(index)


def test_identical_items_beside_others_of_their_raw_index_fill_leaves_of_their_own(index: Index) -> None:
    stream = Stream(index)
    stream.put({f"same{row}": near(0) for row in range(500)} | {f"n{row}": near(row) for row in range(100)})
    rebalance(index)
    at_rest(index)


def test_a_giant_leaf_is_taken_apart_in_steps_that_each_leave_all_sound(index: Index) -> None:
    stream = Stream(index)
    stream.put({f"i{row}": near(row) for row in range(400)})
    leaf = one_leaf(index)
    chosen = config(rebalance={"low": 2, "high": 8, "step_items": 20}).rebalance
    plan: Plan | None = plan_split(index.view, 0, leaf, (2, 8), chosen)
    assert isinstance(plan, SplitPlan)
    steps = 0
    while plan is not None:
        # Members come and go while it is taken apart.
        stream.put({f"new{steps}": near(3 * steps), f"i{7 * steps}": None})
        outcome = apply_plan(index.writer, plan, (2, 8))
        assert outcome.applied
        assert outcome.moved <= 20
        plan, steps = outcome.rest, steps + 1
        assert_sound(index.store, allow_unbalanced=True)
        assert_view_is_loaded(index)
    assert steps >= 400 / 20
    assert index.view.totals.splits == 1
    assert not index.view.facets[0].leaves["alive"][leaf]
    rebalance(index)
    at_rest(index)


def test_a_leaf_left_half_taken_apart_by_a_crash_is_planned_anew(tmp_path: Path) -> None:
    chosen = config(rebalance={"low": 2, "high": 8, "step_items": 20})
    with open_index(tmp_path / "store", chosen) as index:
        apply_bounds(index.writer, (2, 8))
        Stream(index).put({f"i{row}": near(row) for row in range(100)})
        plan = plan_split(index.view, 0, one_leaf(index), (2, 8), chosen.rebalance)
        assert plan is not None
        outcome = apply_plan(index.writer, plan, (2, 8))
        assert outcome.rest is not None
        assert not apply_plan(index.writer, plan, (2, 8)).applied  # the first step is done, and can't be done twice
    with open_index(tmp_path / "store", chosen) as index:
        assert not apply_plan(index.writer, plan, (2, 8)).applied
        rebalance(index, chosen)
        at_rest(index)


@pytest.mark.parametrize("size", [2, 3, 8, 9])
def test_a_leaf_at_a_bound_does_not_flap(index: Index, size: int) -> None:
    stream, rows = Stream(index), count()
    stream.put({f"i{next(rows)}": near(row) for row in range(size)})
    stream.put({f"far{row}": vector_of(row) for row in range(20)})
    rebalance(index)
    before = index.view.totals
    for turn in range(50):
        stream.put({f"i{turn % size}": None})
        rebalance(index)
        stream.put({f"i{turn % size}": near(turn % size)})
        rebalance(index)
    after = index.view.totals
    assert after.splits - before.splits <= 4
    assert after.merges - before.merges <= 4
    at_rest(index)


def test_tiny_facets_and_a_single_item(index: Index) -> None:
    stream = Stream(index)
    rebalance(index)  # nothing at all
    stream.put({"only": vector_of(1)})
    rebalance(index)
    at_rest(index)
    for facet in index.view.facets:
        assert facet.leaves["state"][facet.alive()].tolist() == [LeafState.FEW_ITEMS]
    stream.put({"only": None})
    rebalance(index)
    at_rest(index)
    stream.put({"only": vector_of(2), "two": vector_of(3)})
    rebalance(index)
    at_rest(index)


def test_a_merge_whose_partner_vanished_is_dropped_and_found_again(index: Index) -> None:
    Stream(index).put({f"i{row}": vector_of(row) for row in range(30)})
    first, *_ = plan_merges(index.view, 0, (2, 8), 0.7, 10**6)[0]
    target = index.view.facets[0]
    other = next(leaf for leaf in target.alive().tolist() if leaf not in {first.target, *first.leaves})
    versions = tuple(target.leaves["version"][[other, first.target]].tolist())
    assert apply_plan(index.writer, MergePlan(0, other, (first.target,), versions), (2, 8)).applied
    assert not apply_plan(index.writer, first, (2, 8)).applied
    again = [leaf for plan in plan_merges(index.view, 0, (2, 8), 0.7, 10**6)[0] for leaf in (plan.target, *plan.leaves)]
    small = [leaf for leaf in first.leaves if target.sizes()[leaf] < 2]
    assert set(small) <= set(again)
    rebalance(index)
    at_rest(index)


def test_a_split_whose_leaf_shrank_below_the_bound_is_not_even_planned(index: Index) -> None:
    stream = Stream(index)
    stream.put({f"i{row}": near(row) for row in range(20)})
    leaf = one_leaf(index)
    stream.put({f"i{row}": None for row in range(15)})
    assert plan_split(index.view, 0, leaf, (2, 8), config().rebalance) is None


def test_the_largest_leaf_comes_first_unless_another_is_read_more(index: Index) -> None:
    Stream(index).put(
        {f"a{row}": near(row) for row in range(30)}
        | {f"b{row}": tuple(-x for x in near(row)) for row in range(20)}
        | {f"c{row}": vector_of(row) for row in range(3)}
    )
    due = splits_due(index.view, 8, 1.0)
    sizes = [size for _, _, size in due]
    assert sizes == sorted(sizes, reverse=True)
    facet, leaf, size = due[-1]
    assert size < sizes[0]
    index.view.reads.forget(1.0, len(index.view.members.start))
    for _ in range(5):
        index.view.reads.count(np.array([facet]), np.array([leaf]))
    assert splits_due(index.view, 8, 10.0)[0] == (facet, leaf, size)
    assert splits_due(index.view, 8, 0.0) == due


def test_retrieval_counts_what_it_reads_and_the_compactor_forgets_it(index: Index) -> None:
    from indexer.retrieval.readers import ViewReader
    from indexer.retrieval.retrieve import retrieve

    fill(index, range(30))
    reads, rows = index.view.reads, np.arange(len(index.view.members.start))
    found = retrieve(ViewReader(index.view), ["i1"], config().retrieval, 0)
    assert not reads.of(rows).any()  # no room is made before the compactor asks for it
    rebalance(index)
    rows = np.arange(len(index.view.members.start))
    found = retrieve(ViewReader(index.view), ["i1"], config().retrieval, 0)
    counted = reads.of(found.selected.leaf * FACETS + found.selected.facet)
    assert (counted == 1).all()
    assert reads.of(rows).sum() == len(counted)
    reads.forget(0.5, len(rows))
    assert reads.of(rows).sum() == len(counted) / 2
    assert reads.of(np.array([10**6])).tolist() == [0]


def test_centroids_are_the_means_of_members_after_merges_and_growth(index: Index) -> None:
    stream = Stream(index)
    stream.put({f"i{row}": vector_of(row) for row in range(60)})
    rebalance(index)
    stream.put({f"j{row}": vector_of(row % 60) for row in range(90)})
    rebalance(index)
    for number, facet in enumerate(index.view.facets):
        for leaf in facet.alive().tolist():
            members = facet.members.row(leaf).astype(np.int64)
            if len(members) == facet.leaves["centred"][leaf]:
                mean = index.view.vectors(members, number).astype(np.float64).mean(0)
                np.testing.assert_allclose(facet.leaves["centroid"][leaf], mean, rtol=1e-4, atol=1e-5)
            assert len(members) < 2 * max(1, facet.leaves["centred"][leaf])
    at_rest(index)


def test_a_new_centroid_that_is_overtaken_is_dropped(index: Index) -> None:
    Stream(index).put({f"i{row}": vector_of(row) for row in range(60)})
    [plan] = [plan for plan in plans(index, round_items=10**6) if isinstance(plan, RecenterPlan) and plan.facet == 0]
    assert apply_plan(index.writer, plan, (2, 8)).applied
    assert not apply_plan(index.writer, plan, (2, 8)).applied
    assert_view_is_loaded(index)
    rebalance(index)
    at_rest(index)


def test_every_operation_is_journalled_with_why_sizes_time_and_moves(index: Index) -> None:
    stream = Stream(index)
    told: list[Outcome] = []
    chosen = config(rebalance={"low": 2, "high": 8, "reassign": True})
    stream.put({f"same{row}": vector_of(999) for row in range(30)})
    index.compactor(chosen, told.append).run_until_idle()
    stream.put({f"i{row}": near(row) for row in range(60)} | {f"o{row}": vector_of(row) for row in range(40)})
    index.compactor(chosen, told.append).run_until_idle()
    found = [entry for entry in entries(index) if entry["op"] != "bounds"]
    assert {entry["op"] for entry in found} >= {"split", "merge", "mark", "recenter", "reassign"}
    for entry in found:
        assert entry["why"]
        assert entry["ms"] >= 0
        assert entry["plan_ms"] >= 0
        assert entry["moved"] >= 0
        assert "size" in entry or "sizes" in entry or entry["op"] == "reassign"
    splits = [entry for entry in found if entry["op"] == "split"]
    assert all(entry["moved"] == sum(entry["sizes"]) == entry["size"] - entry["left"] for entry in splits)
    assert sum(outcome.moved for outcome in told) == sum(entry["moved"] for entry in found)
    assert sum(outcome.applied for outcome in told) == len(found)


# -- reassigning -------------------------------------------------------------------------------------------------------


def reassigning(index: Index) -> ReassignPlan:
    """A plan to reassign somebody: a giant raw index in leaves cut without regard to distance."""
    stream = Stream(index)
    stream.put({f"i{row}": near(row) for row in range(60)})
    leaf = one_leaf(index)
    chosen = config(rebalance={"low": 2, "high": 20, "reassign": True}).rebalance
    plan = plan_split(index.view, 0, leaf, (2, 20), chosen)
    assert isinstance(plan, SplitPlan)
    plan.labels[:] = np.arange(len(plan.labels)) % len(plan.centroids)
    outcome = apply_plan(index.writer, plan, (2, 20))
    assert outcome.parted is not None
    parted = outcome.parted
    parted.centroid[:] = plan.centroids.mean(0)  # it doubts those in the middle of the line that the members form
    found = plan_reassign(index.view, parted, (2, 20), chosen)
    assert found is not None
    return found


def distances(index: Index, plan: ReassignPlan, leaves: np.ndarray) -> np.ndarray:
    x = index.view.vectors(plan.members, plan.facet).astype(np.float64)
    return np.asarray(((x - index.view.facets[plan.facet].leaves["centroid"][leaves]) ** 2).sum(1))


def test_whoever_is_reassigned_is_nearer_then_and_among_the_candidates(index: Index) -> None:
    plan = reassigning(index)
    assert len(plan.members)
    assert plan.checked >= len(plan.members)
    assert (distances(index, plan, plan.new) < distances(index, plan, plan.old)).all()
    outcome = apply_plan(index.writer, plan, (2, 20))
    assert outcome.moved == len(plan.members)
    assert index.view.items["leaf"][plan.members, 0].tolist() == plan.new.tolist()
    assert_view_is_loaded(index)
    assert_sound(index.store, allow_unbalanced=True)
    assert not apply_plan(index.writer, plan, (2, 20)).applied  # twice is once


def test_whoever_left_or_changed_is_not_reassigned(index: Index) -> None:
    plan = reassigning(index)
    gone = [index.view.ids[ordinal] for ordinal in plan.members[:2].tolist()]
    stream = Stream(index)
    stream._offset = 60
    stream.put({gone[0]: None})
    stream.put({gone[1]: vector_of(3)})  # another raw index
    outcome = apply_plan(index.writer, plan, (2, 20))
    assert outcome.moved == len(plan.members) - 2
    assert_view_is_loaded(index)
    assert_sound(index.store, allow_unbalanced=True)


def test_nobody_is_reassigned_into_a_leaf_that_vanished(index: Index) -> None:
    plan = reassigning(index)
    one_leaf(index)
    assert not apply_plan(index.writer, plan, (2, 20)).applied
    assert_view_is_loaded(index)


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "delete", "round"]), st.integers(1, 60), st.sampled_from([1, 40])),
    min_size=3,
    max_size=10,
)


@settings(max_examples=30)
@given(steps=STEPS, step_items=st.integers(1, 40), threads=st.integers(1, 3), seed=st.integers(0, 99))
def test_steps_threads_and_reassigning_come_to_rest_whatever_came_between(
    steps: list[tuple[str, int, int]], step_items: int, threads: int, seed: int
) -> None:
    rebalancing = {"step_items": step_items, "plan_threads": threads, "reassign": True, "round_items": 60}
    chosen = config(rebalance={"low": 2, "high": 8} | rebalancing)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder, open_index(Path(folder, "store"), chosen) as index:
        apply_bounds(index.writer, (2, 8))
        stream, names, late = Stream(index), count(), list[Plan]()
        for what, number, distinct in steps:
            late += plan_round(index.view, (2, 8), chosen.rebalance, merges=True)
            if what == "add":
                picked = rng.integers(0, distinct, number).tolist()
                stream.put({f"i{next(names)}": near(5 * row) if distinct > 1 else vector_of(row) for row in picked})
            elif what == "delete" and len(index.view.ids):
                stream.put(dict.fromkeys(rng.permutation(list(index.view.ids))[:number].tolist()))
            else:
                index.compactor(chosen).round()
            assert_sound(index.store, allow_unbalanced=True)
            if late and rng.random() < 0.5:
                apply_plan(index.writer, late.pop(int(rng.integers(len(late)))), (2, 8))
            assert_view_is_loaded(index)
        rebalance(index, chosen)
        at_rest(index, **rebalancing)
