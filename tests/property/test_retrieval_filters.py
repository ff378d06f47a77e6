"""What a request leaves out, triggers that are not indexed, and many requests at once, against plain numpy."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.labels import Filter
from indexer.order import impact_of
from indexer.retrieval.readers import IndexReader, ViewReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import Candidates, fan_out_request, prior, retrieve, retrieve_many
from indexer.retrieval.select import Votes, select_leaves
from indexer.retrieval.store_reader import StoreReader
from schemas.config import RetrievalConfig
from schemas.prior import LearnedPrior
from tests.builders import FACETS, Record, assign, batch_of, config, fill, open_index, rebalance, upserts, vectors_of
from tests.property.test_retrieval_brute_force import (
    ALWAYS_ORDERED,
    CONFIGS,
    NOW_MS,
    PRIORS,
    SEEDS,
    TRIGGERS,
    an_index,
    same,
)

FILTERS = st.builds(
    Filter,
    st.frozensets(st.sampled_from(["c0", "c1", "c2"]), max_size=2),
    st.frozensets(st.sampled_from(["c2", "c3"]), max_size=1),
    st.frozensets(st.sampled_from(["pt", "en", "fr"]), max_size=2),
)


def by_definition(
    view: object,
    found: Candidates,
    wanted: list[np.ndarray],
    skip: set[int],
    born_after: int,
    config: RetrievalConfig,
    only: Filter,
) -> dict[int, float]:
    """Ordinal -> score, of all results that there are: the first S that pass of each leaf, shares, the best of all."""
    reader, k = ViewReader(view), config.k
    rows: list[tuple[float, int, bool]] = []
    total = found.selected.weight.sum()
    for facet, leaf, weight, voters in zip(
        found.selected.facet.tolist(),
        found.selected.leaf.tolist(),
        found.selected.weight.tolist(),
        found.selected.voters,
        strict=True,
    ):
        members = view.facets[facet].members.row(leaf).astype(np.int64)
        heats = view.heats(members)
        created = view.items["created_at"][members]
        impact = impact_of(heats, created, view.impact.creation, view.impact.half_life_s, view.landmark)
        members = members[np.lexsort((-members, -impact))]
        passing = [
            at
            for at in members.tolist()
            if at not in skip
            and view.items["created_at"][at] >= born_after
            and only.passes(view.labels[view.items["labels"][at]])
        ]
        scanned = np.array(passing[: config.scan], np.int64)
        if not len(scanned):
            continue
        queries = np.stack([wanted[voter][facet] for voter in voters.tolist()])
        similarity = (view.vectors(scanned, facet).astype(np.float32) @ queries.T).max(1)
        scores = config.similarity_weight * similarity + prior(reader, scanned, config, NOW_MS)
        quota = max(1, int(np.rint(config.vote_share * k * weight / total))) if config.vote_share else 0
        best = np.lexsort((scanned, -scores))
        rows += [(float(scores[at]), int(scanned[at]), rank < quota) for rank, at in enumerate(best.tolist())]
    out: dict[int, float] = {}
    for within in (True, False):
        for _, ordinal, inside in sorted(rows, key=lambda row: (-row[0], row[1])):
            if inside is within and len(out) < k and ordinal not in out:
                out[ordinal] = max(each for each, other, _ in rows if other == ordinal)
    return out


@given(
    seeds=SEEDS,
    triggers=TRIGGERS,
    cold=st.lists(st.integers(0, 60), max_size=2),
    exclude=st.lists(st.integers(0, 70).map(lambda number: f"i{number}"), max_size=30),
    max_age_s=st.sampled_from([None, 0, 98.97, 99.0]),
    only=FILTERS,
    chosen=CONFIGS,
    share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32),
    learned=PRIORS,
)
def test_an_answer_is_what_its_definition_says(
    seeds: list[int],
    triggers: list[str],
    cold: list[int],
    exclude: list[str],
    max_age_s: float | None,
    only: Filter,
    chosen: RetrievalConfig,
    share: float,
    seed: int,
    learned: LearnedPrior | None,
) -> None:
    chosen = chosen.model_copy(update={"vote_share": share})
    with an_index(seeds, prior=learned) as index:
        view, reader = index.view, ViewReader(index.view)
        given_vectors = vectors_of([record.event for record in upserts(cold)])
        request = Request(triggers, given_vectors, None, exclude, max_age_s, only, seed)
        [found] = retrieve_many(reader, [request], chosen, NOW_MS)
        own = reader.locate(triggers)
        wanted = [*own.vectors, *given_vectors.astype(np.float32)]
        skip = {*own.ordinals.tolist(), *reader.ordinals(exclude).tolist()}
        born_after = -1 if max_age_s is None else NOW_MS - int(max_age_s * 1_000)
        expected = by_definition(view, found, wanted, skip, born_after, chosen, only)
        assert len(found.ordinals) == len(expected)
        np.testing.assert_allclose(found.scores, sorted(expected.values(), reverse=True), atol=2e-5)
        for ordinal, score in zip(found.ordinals.tolist(), found.scores.tolist(), strict=True):
            assert expected.get(ordinal, score) == pytest.approx(score, abs=2e-5)
            assert ordinal not in skip
            assert view.items["created_at"][ordinal] >= born_after
            assert only.passes(view.labels[view.items["labels"][ordinal]])
        index.store.sync()
        assert same(found, retrieve_many(StoreReader(index.store), [request], chosen, NOW_MS)[0])


def lists_by_definition(
    view: object, found: Candidates, wanted: np.ndarray, skip: set[int], config: RetrievalConfig
) -> dict[int, float]:
    """Ordinal -> score: of each trigger and facet the best of the leaves it voted for, of their union the best k."""
    lists: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for facet, leaf, voters in zip(
        found.selected.facet.tolist(), found.selected.leaf.tolist(), found.selected.voters, strict=True
    ):
        scanned = ViewReader(view).members(facet, leaf, 10**6)
        scanned = np.array([at for at in scanned.tolist() if at not in skip][: config.scan], np.int64)
        worth = prior(ViewReader(view), scanned, config, NOW_MS)
        for voter in voters.tolist():
            similarity = view.vectors(scanned, facet).astype(np.float32) @ wanted[voter, facet]
            scores = config.similarity_weight * similarity + worth
            lists.setdefault((voter, facet), []).extend(zip((-scores).tolist(), scanned.tolist(), strict=True))
    best: dict[int, float] = {}
    for each in lists.values():
        for score, ordinal in sorted(each)[: config.per_trigger]:
            best[ordinal] = max(best.get(ordinal, -np.inf), -score)
    return dict(sorted(best.items(), key=lambda one: (-one[1], one[0]))[: config.k])


@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True),
    triggers=TRIGGERS,
    chosen=CONFIGS,
    most=st.sampled_from([1, 2, 7, 1_000]),
)
def test_a_trigger_gives_no_more_in_a_facet_than_it_may(
    seeds: list[int], triggers: list[str], chosen: RetrievalConfig, most: int
) -> None:
    chosen = chosen.model_copy(update={"vote_share": 0.0, "per_trigger": most})
    with an_index(seeds) as index:
        reader = ViewReader(index.view)
        found = retrieve(reader, triggers, chosen, NOW_MS, 7)
        own = reader.locate(triggers)
        expected = lists_by_definition(index.view, found, own.vectors, set(own.ordinals.tolist()), chosen)
        assert len(found.ordinals) == len(expected)
        np.testing.assert_allclose(found.scores, list(expected.values()), atol=2e-5)
        for ordinal, score in zip(found.ordinals.tolist(), found.scores.tolist(), strict=True):
            assert expected.get(ordinal, score) == pytest.approx(score, abs=2e-5)


@given(
    seeds=SEEDS,
    asked=st.lists(
        st.tuples(TRIGGERS, st.integers(0, 9), TRIGGERS, st.lists(st.integers(0, 60), max_size=2), st.booleans()),
        max_size=70,
    ),
    chosen=CONFIGS,
)
@settings(max_examples=20)
def test_many_requests_are_answered_as_each_alone(
    seeds: list[int], asked: list[tuple[list[str], int, list[str], list[int], bool]], chosen: RetrievalConfig
) -> None:
    with an_index(seeds) as index:
        reader = ViewReader(index.view)
        requests = []
        for triggers, seed, exclude, cold, coded in asked:
            vectors = vectors_of([record.event for record in upserts(cold)]) if cold else None
            raws = None if vectors is None or not coded else assign(vectors)[:1]  # the others have no codes
            requests.append(Request(triggers, vectors, raws, exclude, seed=seed))
        together = retrieve_many(reader, requests, chosen, NOW_MS)
        assert len(together) == len(requests)
        for found, request in zip(together, requests, strict=True):
            assert same(found, retrieve_many(reader, [request], chosen, NOW_MS)[0])


@given(seeds=SEEDS, trigger=st.integers(0, 59))
def test_a_trigger_given_as_codes_votes_for_the_leaf_that_a_new_item_like_it_enters(
    seeds: list[int], trigger: int
) -> None:
    chosen = RetrievalConfig(probes=0)
    with an_index(seeds) as index:
        vectors = vectors_of([record.event for record in upserts([trigger])])
        request = Request([], vectors, assign(vectors))
        index.store.sync()
        readers: list[IndexReader] = [ViewReader(index.view), StoreReader(index.store)]
        for reader in readers:
            [found] = retrieve_many(reader, [request], chosen, NOW_MS)
            voted = dict(zip(found.selected.facet.tolist(), found.selected.leaf.tolist(), strict=True))
            entered = reader.enter(vectors.astype(np.float32), assign(vectors))[0]
            for facet in range(FACETS):
                if entered[facet] >= 0:
                    assert voted[facet] == entered[facet]
        led = index.view.facets[0].routes.row(int(assign(vectors)[0, 0])).tolist()
        fill(index, [trigger], prefix="new", start=len(seeds) + 100, at=10**6)
        ordinal = index.view.ids.ordinal(f"new{len(seeds) + 100}")
        if led:
            assert index.view.items["leaf"][ordinal, 0] == entered[0]


def votes_of(reader: ViewReader, triggers: list[str], probes: int) -> Votes:
    """One vote of each trigger for its leaf in each facet, half a vote for each of its nearest other leaves."""
    located, table = reader.locate(triggers), reader.centroids()
    rows: list[tuple[int, int, int, float]] = []
    for facet in range(FACETS):
        at = slice(int(table.pointer[facet]), int(table.pointer[facet + 1]))
        for trigger, vector in enumerate(located.vectors[:, facet]):
            own = int(located.leaves[trigger, facet])
            rows.append((facet, own, trigger, 1.0))
            distance = table.norm[at] - 2 * (vector @ table.columns[:, at])
            near = [leaf for leaf in table.leaf[at][np.argsort(distance, kind="stable")].tolist() if leaf != own]
            rows += [(facet, leaf, trigger, 0.5) for leaf in near[:probes]]
    columns = np.array(rows, np.float64).reshape(-1, 4).T
    return Votes(columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2].astype(np.int64), columns[3])


@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True), triggers=TRIGGERS, chosen=CONFIGS)
def test_the_leaves_chosen_are_those_of_the_plain_selection(
    seeds: list[int], triggers: list[str], chosen: RetrievalConfig
) -> None:
    with an_index(seeds) as index:
        reader = ViewReader(index.view)
        found = retrieve(reader, triggers, chosen, NOW_MS, 7).selected
        expected = select_leaves(votes_of(reader, triggers, chosen.probes), chosen.indices, chosen.selection, 7)
        assert found.facet.tolist() == expected.facet.tolist()
        assert found.leaf.tolist() == expected.leaf.tolist()
        assert found.weight.tolist() == expected.weight.tolist()
        assert [each.tolist() for each in found.voters] == [each.tolist() for each in expected.voters]


def test_a_trigger_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        fill(index, [5] * 3)
        found = retrieve(ViewReader(index.view), ["i0", "i0"], RetrievalConfig(probes=0), NOW_MS)
        assert sorted(found.ordinals.tolist()) == [1, 2]


def test_exclusions_do_not_cost_places_among_the_results(tmp_path: Path) -> None:
    with open_index(tmp_path / "store", ALWAYS_ORDERED) as index:
        fill(index, [5] * 20)
        chosen = RetrievalConfig(k=3, scan=3, probes=0)
        seen = [f"i{number}" for number in range(17, 20)]
        for shards in ({0: ViewReader(index.view)},):
            found = fan_out_request(shards, Request(["i0"], exclude=seen), chosen, NOW_MS)
            assert sorted(found.item_ids) == ["i14", "i15", "i16"]


def test_members_that_came_since_a_leaf_was_sorted_are_read_first(tmp_path: Path) -> None:
    lazy = config(retrieval={"order_slack": 1.0}, rebalance={"low": 2, "high": 1_000})
    with open_index(tmp_path / "store", lazy) as index:
        fill(index, [5] * 20)
        index.view.sort(np.flatnonzero(index.view.members.length))
        index.writer.apply(batch_of([Record("engagements-0", 0, "i4", 90_000, kind="click")]))
        fill(index, [5] * 3, start=20)
        names = ViewReader(index.view).item_ids(
            ViewReader(index.view).members(0, int(index.view.items["leaf"][0, 0]), 5)
        )
        assert names[:3] == ["i22", "i21", "i20"]
        found = retrieve(ViewReader(index.view), ["i0"], RetrievalConfig(k=100, scan=3, probes=0), NOW_MS)
        assert sorted(ViewReader(index.view).item_ids(found.ordinals)) == ["i20", "i21", "i22"]


def test_engaged_items_come_before_newer_ones_and_the_order_outlives_a_restart(tmp_path: Path) -> None:
    with open_index(tmp_path / "store", ALWAYS_ORDERED) as index:
        fill(index, [5] * 6)
        clicks = [
            Record("engagements-0", row, name, 90_000, kind="click") for row, name in enumerate(["i2", "i4", "i2"])
        ]
        index.writer.apply(batch_of(clicks))
        leaf = int(index.view.items["leaf"][0, 0])
        expected = ["i2", "i4", "i5", "i3", "i1", "i0"]
        reader = ViewReader(index.view)
        assert reader.item_ids(reader.members(0, leaf, 10)) == expected
        index.store.sync()
        stored = StoreReader(index.store)
        assert stored.item_ids(stored.members(0, leaf, 10)) == expected
    with open_index(tmp_path / "store") as index:
        reader = ViewReader(index.view)
        assert reader.item_ids(reader.members(0, leaf, 10)) == expected


@settings(max_examples=3)
@given(seed=st.integers(0, 1_000))
def test_answers_are_whole_while_leaves_split_and_merge_and_readers_share(seed: int) -> None:
    """Every leaf read, everything is found, whatever the writer is doing; from two threads at once."""
    rng = np.random.default_rng(seed)
    every = RetrievalConfig(k=10_000, indices=10_000, probes=10_000, scan=10_000)
    chosen = config(rebalance={"low": 2, "high": 8, "round_items": 20})
    with tempfile.TemporaryDirectory() as folder, open_index(Path(folder, "store"), chosen) as index:
        fill(index, rng.integers(0, 200, 200).tolist())
        stop, faults, looks = threading.Event(), [], []

        def look() -> None:
            reader = ViewReader(index.view)
            while not stop.is_set():
                least = index.view.totals.items_live
                found = retrieve(reader, ["i0"], every, NOW_MS)
                if len(found.ordinals) < least - 1:
                    faults.append(f"{len(found.ordinals)} found of {least}")
                looks.append(1)

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for step in range(6):
                rebalance(index, chosen)
                fill(index, rng.integers(0, 200, 40).tolist(), start=200 + 40 * step)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not faults, faults[:3]
        assert looks
