"""Snapshots against the live view at the same offsets.

What holds at any point, whatever was split and merged since the full snapshot: ids, embeddings, counters and ages are
exactly the live view's; each live item is in exactly one leaf per facet, one that the full snapshot's routes allow; an
item that did not change stays where the full snapshot has it; and reading every leaf gives the live view's answer,
which does not depend on how items are cut into leaves. As long as nothing was rebalanced since the full snapshot,
leaves, centroids, the order of posting lists and the answers to all requests, with whatever filter, are the live
view's, bit for bit.

That is so where posting lists are always in order (``order_slack`` 0). Else both have the same lists, each sorted but
for a share of members that came last; what a scan that ends early meets may differ by these.
"""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer.index import Index
from indexer.keys import ItemState
from indexer.labels import Filter
from indexer.retrieval.readers import IndexReader, ViewReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import retrieve_many
from indexer.snapshots import Publisher, SnapshotFollower, SnapshotReader, target_at
from schemas.config import RetrievalConfig
from schemas.prior import LearnedPrior
from tests.builders import (
    DIM,
    FACETS,
    Record,
    assert_lists_are_sound,
    assign,
    batch_of,
    config,
    learned_prior,
    open_index,
    rebalance,
    vector_of,
)
from tests.property.test_retrieval_brute_force import ALWAYS_ORDERED, CONFIGS, PRIORS, same

NOW_MS = 2_000_000
EVERYTHING = RetrievalConfig(k=10_000, indices=10_000, scan=10**6, probes=10**6)

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "add", "update", "delete", "engage", "rebalance", "full", "delta", "delta", "hand over"]
        ),
        st.integers(1, 30),
        st.sampled_from([1, 3, 40, 1_000]),
    ),
    min_size=1,
    max_size=14,
)


class Stream:
    """Makes batches of each kind, remembering what it made."""

    def __init__(self, seed: int) -> None:
        self.dice = np.random.default_rng(seed)
        self.offsets = {"items-0": 0, "engagements-0": 0}
        self.names: list[str] = []
        self.now = 1_000_000

    def batch(self, what: str, count: int, distinct: int) -> Any:
        names = [f"i{len(self.names) + row}" for row in range(count)] if what == "add" else self._some(count)
        self.names += names if what == "add" else []
        self.now += int(self.dice.choice([0, 0, 1_000, 600_000]))  # landmarks move
        records = []
        for name in names:
            stream = "engagements-0" if what == "engage" else "items-0"
            vector = None if what in {"delete", "engage"} else vector_of(int(self.dice.integers(distinct)))
            kind = str(self.dice.choice(["click", "like"])) if what == "engage" else None
            records.append(Record(stream, self.offsets[stream], name, self.now, vector, kind))
            self.offsets[stream] += 1
            self.now += 1
        return batch_of(records)

    def _some(self, count: int) -> list[str]:
        return [self.names[at] for at in self.dice.integers(len(self.names), size=count)] if self.names else []


@settings(print_blob=True)
@example(
    steps=[("add", 1, 1), ("delta", 1, 1), ("hand over", 1, 1), ("add", 1, 1)],
    seed=0,
    triggers=[],
    config_=RetrievalConfig(),
    draw=0,
    learned=learned_prior(),
)
@example(
    steps=[
        *[("add", 30, 40), ("rebalance", 1, 1), ("full", 1, 1), ("add", 30, 40), ("update", 20, 40)],
        *[("rebalance", 1, 1), ("update", 20, 40), ("add", 10, 1_000), ("delta", 1, 1), ("delete", 30, 1)],
        *[("engage", 20, 1), ("rebalance", 1, 1), ("update", 10, 3), ("delta", 1, 1)],
    ],
    seed=3,
    triggers=[1, 2, 40],
    config_=RetrievalConfig(),
    draw=0,
    learned=None,
)
@example(steps=[("delta", 1, 1)], seed=0, triggers=[0], config_=RetrievalConfig(), draw=0, learned=None)
@given(
    steps=STEPS,
    seed=st.integers(0, 1_000),
    triggers=st.lists(st.integers(0, 60), max_size=4),
    config_=CONFIGS,
    draw=st.integers(0, 2**32),
    learned=PRIORS,
)
def test_a_snapshot_answers_as_the_live_view_at_its_offsets(
    steps: list[tuple[str, int, int]],
    seed: int,
    triggers: list[int],
    config_: RetrievalConfig,
    draw: int,
    learned: LearnedPrior | None,
) -> None:
    stream, config_ = Stream(seed), config_.model_copy(update={"hot_share": draw % 3 / 4})
    with (
        tempfile.TemporaryDirectory() as folder,
        open_index(Path(folder, "store"), ALWAYS_ORDERED, prior=learned) as index,
    ):
        url = str(Path(folder, "snapshots"))
        publisher = Publisher(index.view, 0, target_at(url), 2)
        publisher.full()
        follower = SnapshotFollower(url)
        assert follower.refresh()
        disturbed, changed = False, set[str]()
        for what, count, distinct in [*steps, ("delta", 0, 0)]:
            if what == "rebalance":
                before = index.view.totals.journal_seq
                rebalance(index)
                disturbed |= before != index.view.totals.journal_seq
            elif what == "hand over":
                publisher.close()
                publisher = Publisher(index.view, 0, target_at(url), 2)
                publisher.go_on(follower.readers[0])
            elif what in {"full", "delta"}:
                published = publisher.full() if what == "full" else publisher.delta()
                if what == "full":
                    disturbed, changed = False, set()
                assert follower.refresh() == (published is not None)
                reader = follower.readers[0]
                assert reader.at.offsets == index.view.positions
                assert_items_are_the_views(index, reader, stream.names)
                assert_filed_soundly(index, reader, changed)
                again = SnapshotFollower(url)
                again.refresh()
                assert_same_leaves(reader, again.readers[0])
                asked = requests(stream, triggers, draw)
                assert_answers_alike(reader, again.readers[0], asked, config_)
                if not disturbed:
                    assert_same_leaves(reader, ViewReader(index.view))
                    assert_answers_alike(reader, ViewReader(index.view), asked, config_)
                assert_finds_all_alike(reader, ViewReader(index.view), asked)
            else:
                batch = stream.batch(what, count, distinct)
                changed |= set(batch.items.item_ids)
                index.writer.apply(batch)
        publisher.close()
        assert not index.view.watchers


@given(steps=STEPS, seed=st.integers(0, 1_000), learned=PRIORS)
def test_with_slack_posting_lists_hold_the_same_and_are_ordered_within_it(
    steps: list[tuple[str, int, int]], seed: int, learned: LearnedPrior | None
) -> None:
    stream = Stream(seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_index(Path(folder, "store"), config(), prior=learned) as index,
    ):
        url = str(Path(folder, "snapshots"))
        publisher = Publisher(index.view, 0, target_at(url), 2)
        publisher.full()
        follower = SnapshotFollower(url)
        follower.refresh()
        for what, count, distinct in steps:
            if what in {"rebalance", "hand over"}:
                continue
            if what in {"full", "delta"}:
                (publisher.full if what == "full" else publisher.delta)()
                follower.refresh()
                assert_shows_the_view(index, follower.readers[0])
            else:
                index.writer.apply(stream.batch(what, count, distinct))


def assert_shows_the_view(index: Index, reader: SnapshotReader) -> None:
    """The arrays behind a reader are a live view as sound as the writer's, with the same lists."""
    one, other = index.view, reader._view
    ordinals = np.arange(len(one.ids))
    for name in ("state", "created_at", "labels", "leaf", "epochs", "decayed", "last_at"):
        np.testing.assert_array_equal(one.items[name], other.items[name], err_msg=name)
    np.testing.assert_array_equal(one.heats(ordinals), other.heats(ordinals))
    assert (one.landmark, one.latest_engagement) == (other.landmark, other.latest_engagement)
    assert [*one.labels] == [*other.labels]
    assert_lists_are_sound(other)
    for mine, its in zip(one.facets, other.facets, strict=True):
        assert mine.alive().tolist() == its.alive().tolist()
        for leaf in mine.alive().tolist():
            assert sorted(mine.members.row(leaf).tolist()) == sorted(its.members.row(leaf).tolist())


def requests(stream: Stream, triggers: list[int], draw: int) -> list[Request]:
    """Plain, filtered, and of triggers that are not indexed."""
    wanted = [f"i{number}" for number in triggers]
    cold = np.array([vector_of(number + 500) for number in triggers[:2]], np.float16).reshape(-1, FACETS, DIM)
    return [
        Request(wanted, seed=draw),
        Request(wanted, only=Filter(frozenset(["c1", "c2"]), frozenset(["c3"]), frozenset(["pt"])), seed=draw),
        Request(wanted, exclude=stream.names[::3], max_age_s=(NOW_MS - 1_000_050) / 1_000, seed=draw),
        Request(wanted[1:], vectors=cold, raws=assign(cold)[:1], seed=draw),
    ]


def assert_answers_alike(one: IndexReader, other: IndexReader, asked: list[Request], config_: RetrievalConfig) -> None:
    for mine, its in zip(*(retrieve_many(each, asked, config_, NOW_MS) for each in (one, other)), strict=True):
        assert same(mine, its)


def assert_finds_all_alike(one: IndexReader, other: IndexReader, asked: list[Request]) -> None:
    """Reading every leaf finds the same items with the same scores, however they are filed."""
    for mine, its in zip(*(retrieve_many(each, asked, EVERYTHING, NOW_MS) for each in (one, other)), strict=True):
        assert mine.missing == its.missing
        assert set(mine.ordinals.tolist()) == set(its.ordinals.tolist())
        np.testing.assert_allclose(np.sort(mine.scores), np.sort(its.scores), atol=1e-5)


def assert_items_are_the_views(index: Index, reader: SnapshotReader, names: list[str]) -> None:
    view = ViewReader(index.view)
    asked = [*names, "nobody", *names[:2]]
    mine, its = reader.locate(asked), view.locate(asked)
    assert mine.ordinals.tolist() == its.ordinals.tolist()
    assert mine.missing == its.missing
    assert mine.vectors.tobytes() == its.vectors.tobytes()
    every = np.arange(len(index.view.ids))
    for window in range(2):
        assert reader.engagement(every, window, NOW_MS).tobytes() == view.engagement(every, window, NOW_MS).tobytes()
    assert reader.created_at(every).tolist() == view.created_at(every).tolist()
    assert reader.item_ids(every) == view.item_ids(every)


def assert_filed_soundly(index: Index, reader: SnapshotReader, changed: set[str]) -> None:
    """Each live item in one leaf of each facet: that which it is said to be in, and one its raw index may lead to."""
    items, stored = index.view.items, reader.stored
    live = np.flatnonzero(items["state"] == ItemState.LIVE)
    located = reader.locate(index.view.ids.of(live))
    centroids = reader.centroids()
    for facet in range(FACETS):
        leaves = centroids.leaf[centroids.pointer[facet] : centroids.pointer[facet + 1]].tolist()
        assert len(set(leaves)) == len(leaves)
        found = {leaf: reader.members(facet, leaf, 10**9).tolist() for leaf in leaves}
        assert sorted(chain.from_iterable(found.values())) == live.tolist()
        leaf_of = {ordinal: leaf for leaf, members in found.items() for ordinal in members}
        assert [leaf_of[ordinal] for ordinal in live.tolist()] == located.leaves[:, facet].tolist()
        raws, offsets = stored[f"f{facet}.raws"].tolist(), stored[f"f{facet}.route_offsets"]
        for ordinal, item_id in zip(live.tolist(), index.view.ids.of(live), strict=True):
            raw = int(items["raw"][ordinal, facet])
            if raw in raws:
                at = raws.index(raw)
                assert leaf_of[ordinal] in stored[f"f{facet}.route_leaves"][offsets[at] : offsets[at + 1]]
            if item_id not in changed:
                assert leaf_of[ordinal] == stored["leaf"][ordinal, facet]


def assert_same_leaves(one: IndexReader, other: IndexReader) -> None:
    mine, its = one.centroids(), other.centroids()
    assert mine.pointer.tolist() == its.pointer.tolist()
    assert mine.leaf.tolist() == its.leaf.tolist()
    assert mine.columns.tobytes() == its.columns.tobytes()
    for facet in range(FACETS):
        for leaf in mine.leaf[mine.pointer[facet] : mine.pointer[facet + 1]].tolist():
            for limit in (1, 10**6):
                assert one.members(facet, leaf, limit).tolist() == other.members(facet, leaf, limit).tolist()
