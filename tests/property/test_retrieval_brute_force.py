"""Retrieval against brute force, and the two readers against each other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer.index import Index
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.retrieve import Candidates, prior, retrieve
from indexer.retrieval.select import Votes, select_leaves
from indexer.retrieval.store_reader import StoreReader
from indexer.store import Store
from schemas.config import RetrievalConfig
from schemas.errors import UsageError
from schemas.prior import LearnedPrior
from tests.builders import (
    FACETS,
    HALF_LIVES_S,
    Record,
    batch_of,
    config,
    fill,
    learned_prior,
    open_index,
    rebalance,
    vector_of,
)

NOW_MS = 100_000
ALWAYS_ORDERED = config(retrieval={"order_slack": 0})
ITEMS = 60


@contextmanager
def an_index(
    seeds: list[int], *, engaged: int = 30, balanced: bool = True, prior: LearnedPrior | None = None
) -> Iterator[Index]:
    """Items ``i0`` ..., every seventh deleted, some of them engaged."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open_index(Path(folder, "store"), ALWAYS_ORDERED, prior=prior) as index,
    ):
        fill(index, seeds)
        rng = np.random.default_rng(len(seeds))
        index.writer.apply(
            batch_of(
                [Record("items-0", len(seeds) + row, f"i{row * 7}", 90_000) for row in range(len(seeds) // 7)]
                + [
                    Record("engagements-0", row, f"i{rng.integers(len(seeds))}", 50_000 + row, kind="click")
                    for row in range(engaged)
                ]
            )
        )
        if balanced:
            rebalance(index)
        yield index


SEEDS = st.lists(st.integers(0, 40), min_size=1, max_size=ITEMS)
TRIGGERS = st.lists(st.integers(0, ITEMS + 5).map(lambda number: f"i{number}"), max_size=5)
PRIORS = st.sampled_from([None, learned_prior()])
CONFIGS = st.builds(
    RetrievalConfig,
    prior_weight=st.sampled_from([0.0, 1.0, 0.5]),
    k=st.sampled_from([1, 3, 10, 1_000]),
    indices=st.sampled_from([1, 2, 5, 1_000]),
    selection=st.sampled_from(["top", "multinomial"]),
    scan=st.sampled_from([1, 3, 512]),
    probes=st.sampled_from([0, 1, 3, 1_000]),
    similarity_weight=st.sampled_from([0.0, 1.0]),
    engagement_weight=st.sampled_from([0.0, 0.5]),
    freshness_weight=st.sampled_from([0.0, 2.0]),
    decay=st.sampled_from([-1, 0, 1]),
)


def same(one: Candidates, other: Candidates) -> bool:
    return (
        one.ordinals.tolist() == other.ordinals.tolist()
        and one.scores.tobytes() == other.scores.tobytes()
        and one.facets.tolist() == other.facets.tolist()
        and one.leaves.tolist() == other.leaves.tolist()
        and one.missing == other.missing
        and one.scored == other.scored
    )


@given(seeds=SEEDS, triggers=TRIGGERS, config=CONFIGS, seed=st.integers(0, 2**63), learned=PRIORS)
def test_whatever_is_asked_the_answer_is_in_order_and_true(
    seeds: list[int], triggers: list[str], config: RetrievalConfig, seed: int, learned: LearnedPrior | None
) -> None:
    with an_index(seeds, prior=learned) as index:
        reader = ViewReader(index.view)
        found = retrieve(reader, triggers, config, NOW_MS, seed)
        live = {name for at, name in enumerate(index.view.ids) if index.view.items["state"][at] == 1}
        assert found.missing == [name for name in triggers if name not in live]
        assert len(found.ordinals) <= config.k
        assert len(set(found.ordinals.tolist())) == len(found.ordinals)
        assert (np.diff(found.scores) <= 0).all()
        assert len(found.selected.leaf) <= config.indices
        names = reader.item_ids(found.ordinals)
        assert set(names) <= live - set(triggers)
        chosen = set(zip(found.selected.facet.tolist(), found.selected.leaf.tolist(), strict=True))
        for ordinal, facet, leaf in zip(
            found.ordinals.tolist(), found.facets.tolist(), found.leaves.tolist(), strict=True
        ):
            assert (facet, leaf) in chosen
            assert index.view.items["leaf"][ordinal, facet] == leaf
        # The same again: from the same seed, from the store, and from a view loaded anew.
        assert same(found, retrieve(reader, triggers, config, NOW_MS, seed))
        index.store.sync()
        with Store.open_secondary(index.store.path) as store:
            assert same(found, retrieve(StoreReader(store), triggers, config, NOW_MS, seed))
        index.close()
        with open_index(index.store.path, ALWAYS_ORDERED, prior=learned) as again:
            assert same(found, retrieve(ViewReader(again.view), triggers, config, NOW_MS, seed))


def brute_force(
    index: Index, found: Candidates, triggers: list[str], config: RetrievalConfig
) -> dict[int, tuple[float, set[tuple[int, int]]]]:
    """Ordinal -> (best score over the leaves that were read, where), by the definition."""
    items, out = index.view.items, {}
    at = [index.view.ids.ordinal(name) for name in triggers if index.view.ids.ordinal(name) >= 0]
    at = [ordinal for ordinal in at if items["state"][ordinal] == 1]
    every = np.flatnonzero(items["state"] == 1)
    vectors = [
        dict(zip(every.tolist(), index.view.vectors(every, facet).astype(np.float64), strict=True))
        for facet in range(FACETS)
    ]
    extra = dict(zip(every.tolist(), prior(ViewReader(index.view), every, config, NOW_MS).tolist(), strict=True))
    for facet, leaf, voters in zip(
        found.selected.facet.tolist(), found.selected.leaf.tolist(), found.selected.voters, strict=True
    ):
        for ordinal in every.tolist():
            if items["leaf"][ordinal, facet] != leaf or ordinal in at:
                continue
            mine = vectors[facet][ordinal]
            similarity = max(float(mine @ vectors[facet][at[voter]]) for voter in voters.tolist())
            score = config.similarity_weight * similarity + extra[ordinal]
            best, where = out.get(ordinal, (-np.inf, set()))
            if abs(score - best) < 1e-5:
                where = where | {(facet, leaf)}
            elif score > best:
                best, where = score, {(facet, leaf)}
            out[ordinal] = (best, where)
    return out


@given(seeds=SEEDS, triggers=TRIGGERS, engagement=st.sampled_from([0.0, 0.3]), balanced=st.booleans(), learned=PRIORS)
def test_reading_every_leaf_finds_what_exact_search_finds(
    seeds: list[int],
    triggers: list[str],
    engagement: float,
    balanced: bool,  # noqa: FBT001  # hypothesis names it
    learned: LearnedPrior | None,
) -> None:
    config = RetrievalConfig(k=1_000, indices=1_000, scan=10**6, probes=10**6, engagement_weight=engagement)
    with an_index(seeds, balanced=balanced, prior=learned) as index:
        found = retrieve(ViewReader(index.view), triggers, config, NOW_MS)
        live_triggers = len(set(triggers) - set(found.missing))
        expected = brute_force(index, found, triggers, config)
        if live_triggers:
            assert len(expected) == index.view.totals.items_live - live_triggers
        assert set(found.ordinals.tolist()) == set(expected)
        for ordinal, score, facet, leaf in zip(
            found.ordinals.tolist(), found.scores.tolist(), found.facets.tolist(), found.leaves.tolist(), strict=True
        ):
            best, where = expected[ordinal]
            assert score == pytest.approx(best, abs=1e-4)
            assert (facet, leaf) in where


@example(seeds=[0, 0, 0, 1, 1, 1, 1, 2], triggers=["i3"], k=4)  # a leaf whose share is its best one alone
@given(seeds=SEEDS, triggers=TRIGGERS, k=st.integers(1, 20))
def test_each_leaf_gives_at_least_its_share_as_long_as_there_is_room(
    seeds: list[int], triggers: list[str], k: int
) -> None:
    config = RetrievalConfig(k=k, indices=4, scan=10**6, probes=1, engagement_weight=0)
    with an_index(seeds) as index:
        found = retrieve(ViewReader(index.view), triggers, config, NOW_MS)
        expected = brute_force(index, found, triggers, config)
        assert len(found.ordinals) == min(k, len(expected))
        members = [
            {ordinal for ordinal in expected if index.view.items["leaf"][ordinal, facet] == leaf}
            for facet, leaf in zip(found.selected.facet.tolist(), found.selected.leaf.tolist(), strict=True)
        ]
        weight = found.selected.weight
        if np.maximum(1, np.rint(k * weight / weight.sum())).sum() <= k:  # rounded, shares may be more than there is
            got = set(found.ordinals.tolist())
            assert all(got & some for some in members if some)


def test_a_leaf_longer_than_the_scan_gives_its_newest_members(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        fill(index, [5] * 20)
        index.store.sync()
        config = RetrievalConfig(k=100, scan=6, probes=0)
        for reader in (ViewReader(index.view), StoreReader(index.store)):
            found = retrieve(reader, ["i0"], config, NOW_MS)
            assert sorted(reader.item_ids(found.ordinals)) == ["i14", "i15", "i16", "i17", "i18", "i19"]


def test_triggers_that_are_not_live_are_reported_in_order(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        fill(index, range(10))
        index.writer.apply(batch_of([Record("items-0", 10, "i3", 10**6)]))
        found = retrieve(ViewReader(index.view), ["x", "i3", "i4", "y"], RetrievalConfig(), NOW_MS)
        assert found.missing == ["x", "i3", "y"]
        nothing = retrieve(ViewReader(index.view), ["x"], RetrievalConfig(), NOW_MS)
        assert nothing.missing == ["x"]
        assert not len(nothing.ordinals)
        assert not len(retrieve(ViewReader(index.view), [], RetrievalConfig(), NOW_MS).ordinals)


def test_an_empty_index_answers_with_nothing(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        found = retrieve(ViewReader(index.view), ["a"], RetrievalConfig(selection="multinomial"), NOW_MS, 1)
        assert found.missing == ["a"]
        assert not len(found.ordinals)


def test_more_engaged_and_fresher_items_come_first_when_that_counts(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        fill(index, [5, 5, 5, 5])
        clicks = [Record("engagements-0", row, "i2", 90_000, kind="click") for row in range(3)]
        index.writer.apply(batch_of(clicks))
        reader = ViewReader(index.view)
        by_clicks = retrieve(reader, ["i0"], RetrievalConfig(engagement_weight=1), NOW_MS)
        assert reader.item_ids(by_clicks.ordinals)[0] == "i2"
        fresh = RetrievalConfig(engagement_weight=0, freshness_weight=1, freshness_half_life_s=1)
        assert reader.item_ids(retrieve(reader, ["i0"], fresh, 1_010).ordinals) == ["i3", "i2", "i1"]


def test_a_half_life_that_is_not_counted_is_refused(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        config = RetrievalConfig(decay=len(HALF_LIVES_S))
        with pytest.raises(UsageError, match=r"retrieval\.decay is 2, but this index counts 2 half-lives"):
            retrieve(ViewReader(index.view), ["a"], config, NOW_MS)


def votes(weights: list[float]) -> Votes:
    n = len(weights)
    return Votes(np.zeros(n, np.int64), np.arange(n), np.arange(n), np.array(weights))


@settings(max_examples=5)
@given(weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 8.0]), min_size=2, max_size=5))
def test_multinomial_selection_draws_first_by_weight(weights: list[float]) -> None:
    """Without replacement: the first draw follows the weights, and each later one the weights that are left."""
    draws = 3_000
    single, pairs = np.zeros(len(weights)), np.zeros((len(weights), len(weights)))
    for seed in range(draws):
        single[select_leaves(votes(weights), 1, "multinomial", seed).leaf[0]] += 1
        first, second = sorted(select_leaves(votes(weights), 2, "multinomial", seed).leaf.tolist())
        pairs[first, second] += 1
    share = np.array(weights) / sum(weights)
    assert np.abs(single / draws - share).max() < 0.05
    for one in range(len(weights)):
        for other in range(one + 1, len(weights)):
            both = share[one] * share[other] * (1 / (1 - share[one]) + 1 / (1 - share[other]))
            assert abs(pairs[one, other] / draws - both) < 0.05


@given(
    rows=st.lists(st.tuples(st.integers(0, FACETS - 1), st.integers(0, 4), st.integers(0, 5)), max_size=20),
    k=st.integers(1, 12),
    how=st.sampled_from(["top", "multinomial"]),
    seed=st.integers(0, 100),
)
def test_selection_gives_distinct_leaves_heaviest_first_with_all_their_voters(
    rows: list[tuple[int, int, int]], k: int, how: Any, seed: int
) -> None:
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    weight = np.array([1.0 if trigger % 2 else 0.5 for _, _, trigger in rows])
    found = select_leaves(Votes(columns[0], columns[1], columns[2], weight), k, how, seed)
    leaves = list(zip(found.facet.tolist(), found.leaf.tolist(), strict=True))
    histogram: dict[tuple[int, int], float] = {}
    for (facet, leaf, _), value in zip(rows, weight.tolist(), strict=True):
        histogram[facet, leaf] = histogram.get((facet, leaf), 0) + value
    assert len(set(leaves)) == len(leaves) == min(k, len(histogram))
    assert [histogram[each] for each in leaves] == found.weight.tolist()
    assert (np.diff(found.weight) <= 0).all()
    for each, voters in zip(leaves, found.voters, strict=True):
        assert voters.tolist() == sorted({trigger for facet, leaf, trigger in rows if (facet, leaf) == each})
    if how == "top":
        assert leaves == sorted(histogram, key=lambda each: (-histogram[each], each))[:k]


def test_items_move_leaves_but_keep_their_vectors(tmp_path: Path) -> None:
    """An answer is the same before and after rebalancing when every leaf is read."""
    config = RetrievalConfig(k=1_000, indices=1_000, scan=10**6, probes=10**6)
    with open_index(tmp_path / "store") as index:
        index.writer.apply(batch_of([Record("items-0", row, f"i{row}", row, vector_of(row)) for row in range(80)]))
        reader = ViewReader(index.view)
        before = retrieve(reader, ["i1", "i2"], config, NOW_MS)
        rebalance(index)
        after = retrieve(reader, ["i1", "i2"], config, NOW_MS)
        assert index.view.totals.splits > 0
        assert set(before.ordinals.tolist()) == set(after.ordinals.tolist())
        np.testing.assert_allclose(before.scores, after.scores, atol=1e-4)
