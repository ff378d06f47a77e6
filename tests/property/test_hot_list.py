"""The hot list by its definition: what it holds, the places it takes, and every reader of an index alike."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.hot import Hot, HotList
from indexer.index import Index
from indexer.keys import ItemState
from indexer.labels import Filter
from indexer.order import impact_of
from indexer.retrieval.hot import OF_THE_LIST
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import Candidates, fan_out_request, retrieve_many
from indexer.retrieval.store_reader import StoreReader
from indexer.store import Store
from schemas.config import RetrievalConfig
from schemas.prior import LearnedPrior
from tests.builders import Record, batch_of, open_index, upserts, vector_of
from tests.property.test_retrieval_brute_force import (
    ALWAYS_ORDERED,
    NOW_MS,
    PRIORS,
    SEEDS,
    TRIGGERS,
    an_index,
    same,
)

SHARES = st.sampled_from([0.1, 0.25, 0.5, 1.0])
CONFIGS = st.builds(
    RetrievalConfig,
    hot_share=SHARES,
    k=st.sampled_from([1, 3, 10, 1_000]),
    indices=st.sampled_from([1, 2, 1_000]),
    scan=st.sampled_from([1, 512]),
    probes=st.sampled_from([0, 1_000]),
    prior_weight=st.sampled_from([0.0, 0.25]),
    engagement_weight=st.sampled_from([0.0, 0.5]),
    vote_share=st.sampled_from([0.0, 1.0]),
)
REQUESTS = st.lists(
    st.builds(
        Request,
        item_ids=TRIGGERS,
        exclude=TRIGGERS,
        max_age_s=st.sampled_from([None, None, 99.97]),
        only=st.sampled_from([Filter(), Filter(frozenset({"c1", "c2"})), Filter(frozenset({"nobody has it"}))]),
    ),
    min_size=1,
    max_size=3,
)


def by_definition(index: Index) -> list[int]:
    """Ordinals of all live items, the hottest first."""
    view = index.view
    live = np.flatnonzero(view.items["state"] == ItemState.LIVE)
    impact = view.impact
    hot = impact_of(
        view.heats(live), view.items["created_at"][live], impact.creation, impact.half_life_s, view.landmark
    )
    return sorted(live.tolist(), key=lambda ordinal: (-np.float32(hot[live.tolist().index(ordinal)]), -ordinal))


def may_be(index: Index, request: Request, ordinal: int) -> bool:
    name = index.view.ids.of(np.array([ordinal]))[0]
    if name in {*request.item_ids, *request.exclude}:
        return False
    items = index.view.items
    if request.max_age_s is not None and items["created_at"][ordinal] < NOW_MS - request.max_age_s * 1_000:
        return False
    return not request.only or bool(index.view.labels.allowed(request.only)[items["labels"][ordinal]])


def arranged(hot: list[int], found: list[int], config: RetrievalConfig) -> list[int]:
    head = hot[: math.ceil(config.hot_share * config.k)][: config.k]
    rest = [each for each in found if each not in head][: config.k - len(head)]
    fill = [each for each in hot if each not in {*head, *rest}]
    return [*head, *rest, *fill][: config.k]


@given(seeds=SEEDS, requests=REQUESTS, config=CONFIGS, learned=PRIORS)
def test_the_hottest_come_first_and_what_either_side_lacks_the_other_fills(
    seeds: list[int], requests: list[Request], config: RetrievalConfig, learned: LearnedPrior | None
) -> None:
    with an_index(seeds, prior=learned) as index:
        reader = ViewReader(index.view)
        answers = retrieve_many(reader, requests, config, NOW_MS)
        alone = retrieve_many(reader, requests, config.model_copy(update={"hot_share": 0.0}), NOW_MS)
        order = by_definition(index)
        for request, answer, retrieved in zip(requests, answers, alone, strict=True):
            hot = [ordinal for ordinal in order if may_be(index, request, ordinal)]
            assert answer.ordinals.tolist() == arranged(hot, retrieved.ordinals.tolist(), config)
            assert (answer.scored, answer.missing) == (retrieved.scored, retrieved.missing)
            assert_true(answer, retrieved)
            one = fan_out_request({0: reader}, request, config, NOW_MS)
            assert one.item_ids == reader.item_ids(answer.ordinals)
            assert one.scores.tobytes() == answer.scores.tobytes()
            assert (one.facets.tolist(), one.leaves.tolist()) == (answer.facets.tolist(), answer.leaves.tolist())
        index.store.sync()
        with Store.open_secondary(index.store.path) as store:
            at_rest = retrieve_many(StoreReader(store), requests, config, NOW_MS)
            assert all(same(one, other) for one, other in zip(answers, at_rest, strict=True))
        index.close()
        with open_index(index.store.path, ALWAYS_ORDERED, prior=learned) as again:
            anew = retrieve_many(ViewReader(again.view), requests, config, NOW_MS)
            assert all(same(one, other) for one, other in zip(answers, anew, strict=True))


def assert_true(answer: Candidates, retrieved: Candidates) -> None:
    """What was retrieved is as it was; what is hot says so, the hottest first."""
    listed = answer.facets == OF_THE_LIST
    assert (listed == (answer.leaves == OF_THE_LIST)).all()
    assert (np.diff(answer.scores[listed]) <= 0).all()
    where = {ordinal: at for at, ordinal in enumerate(retrieved.ordinals.tolist())}
    for at in np.flatnonzero(~listed).tolist():
        before = where[int(answer.ordinals[at])]
        for column in ("scores", "facets", "leaves"):
            assert getattr(answer, column)[at] == getattr(retrieved, column)[before]


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "engage", "delete", "wait", "ask"]), st.integers(1, 12)), min_size=1, max_size=20
)


@given(steps=STEPS, longest=st.integers(1, 8), seed=st.integers(0, 1_000), learned=PRIORS)
def test_the_list_that_is_kept_is_the_one_that_is_made_anew(
    steps: list[tuple[str, int]], longest: int, seed: int, learned: LearnedPrior | None
) -> None:
    dice, now, offset, names = np.random.default_rng(seed), 1_000_000, 0, 0
    with tempfile.TemporaryDirectory() as folder, open_index(Path(folder, "store"), prior=learned) as index:
        view = index.view
        view.hot = kept = HotList(view, longest)
        for what, count in [*steps, ("ask", 1)]:
            if what == "ask":
                with view.lock.shared():
                    assert alike(kept.shown(), HotList(view, longest).shown())
                    assert kept.shown().ordinal.tolist() == by_definition(index)[:longest]
                continue
            now += 3_600_000 * count if what == "wait" else 1_000
            some = range(names, names + count) if what == "add" else dice.integers(max(1, names), size=count).tolist()
            names += count if what == "add" else 0
            stream, kind = ("engagements-0", "click") if what == "engage" else ("items-0", None)
            records = []
            for number in some:
                vector = vector_of(number) if what in {"add", "wait"} else None
                records.append(Record(stream, offset, f"i{number}", now, vector, kind))
                offset += 1
            index.writer.apply(batch_of(records))


def test_a_list_that_nobody_asked_for_long_is_right_all_the_same(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        index.writer.apply(batch_of(upserts(range(30))))
        view = index.view
        view.hot = kept = HotList(view, 8)
        before = kept.shown()
        clicks = [Record("engagements-0", row, "i3", 90_000, kind="click") for row in range(9)]
        index.writer.apply(batch_of(clicks))
        kept.touch(np.zeros(1 << 18, np.int64))  # more than it keeps: which ones these were is forgotten
        assert kept.shown().ordinal[0] == 3 != before.ordinal[0]
        assert alike(kept.shown(), HotList(view, 8).shown())


def alike(one: Hot, other: Hot) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@given(seeds=SEEDS, requests=REQUESTS, indices=st.integers(1, 30), probes=st.integers(0, 3))
def test_with_few_triggers_more_neighbours_vote(
    seeds: list[int], requests: list[Request], indices: int, probes: int
) -> None:
    config = RetrievalConfig(k=20, indices=indices, probes=probes, adapt_probes=True)
    with an_index(seeds) as index:
        reader, facets = ViewReader(index.view), index.view.meta.facets
        for request, answer in zip(requests, retrieve_many(reader, requests, config, NOW_MS), strict=True):
            triggers = max(1, len(request.item_ids) - len(answer.missing))
            wanted = max(probes, math.ceil(indices / (triggers * facets)) - 1)
            plain = RetrievalConfig(k=20, indices=indices, probes=wanted)
            assert same(answer, retrieve_many(reader, [request], plain, NOW_MS)[0])
            if len(request.item_ids) > len(answer.missing):
                every = sum(len(facet.alive()) for facet in index.view.facets)
                assert len(answer.selected.leaf) >= min(indices, every) / triggers


def test_shards_share_the_places_of_one_list(tmp_path: Path) -> None:
    config = RetrievalConfig(k=10, indices=1_000, probes=1_000, scan=1_000, hot_share=0.5)
    with open_index(tmp_path / "a") as one, open_index(tmp_path / "b") as other, open_index(tmp_path / "c") as whole:
        every = upserts(range(30))
        clicks = [Record("engagements-0", row, f"i{row * row % 30}", 90_000, kind="click") for row in range(40)]
        for index, mine in ((one, every[::2]), (other, every[1::2]), (whole, every)):
            index.writer.apply(batch_of(mine))
            there = {record.item_id for record in mine}
            index.writer.apply(batch_of([click for click in clicks if click.item_id in there]))
        readers = {0: ViewReader(one.view), 1: ViewReader(other.view)}
        found = fan_out_request(readers, Request(["i3"]), config, NOW_MS)
        alone = fan_out_request({0: ViewReader(whole.view)}, Request(["i3"]), config, NOW_MS)
        assert (found.facets == OF_THE_LIST).tolist() == [True] * 5 + [False] * 5
        assert found.scores[:5] == pytest.approx(alone.scores[:5])
        assert len(set(found.item_ids)) == 10
        assert "i3" not in found.item_ids
        nobody = fan_out_request(readers, Request(["nobody"]), config, NOW_MS)
        assert len(nobody.item_ids) == 10
        assert (nobody.facets == OF_THE_LIST).all()
