"""Snapshots against the live view at the same offsets.

What holds at any point, whatever was split and merged since the full snapshot: ids, embeddings, counters and ages are
exactly the live view's; each live item is in exactly one leaf per facet, one that the full snapshot's routes allow; an
item that did not change stays where the full snapshot has it; and reading every leaf gives the live view's answer,
which does not depend on how items are cut into leaves. As long as nothing was split or merged since the full snapshot,
leaves, centroids and the answers to all requests are the live view's, bit for bit.
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
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.retrieve import retrieve
from indexer.snapshots import Publisher, SnapshotFollower, SnapshotReader, target_at
from schemas.config import RetrievalConfig
from tests.builders import FACETS, Record, batch_of, open_index, rebalance, vector_of
from tests.property.test_retrieval_brute_force import CONFIGS, same

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
    config=RetrievalConfig(),
    draw=0,
)
@example(
    steps=[
        *[("add", 30, 40), ("rebalance", 1, 1), ("full", 1, 1), ("add", 30, 40), ("update", 20, 40)],
        *[("rebalance", 1, 1), ("update", 20, 40), ("add", 10, 1_000), ("delta", 1, 1), ("delete", 30, 1)],
        *[("engage", 20, 1), ("rebalance", 1, 1), ("update", 10, 3), ("delta", 1, 1)],
    ],
    seed=3,
    triggers=[1, 2, 40],
    config=RetrievalConfig(),
    draw=0,
)
@example(steps=[("delta", 1, 1)], seed=0, triggers=[0], config=RetrievalConfig(), draw=0)
@given(
    steps=STEPS,
    seed=st.integers(0, 1_000),
    triggers=st.lists(st.integers(0, 60), max_size=4),
    config=CONFIGS,
    draw=st.integers(0, 2**32),
)
def test_a_snapshot_answers_as_the_live_view_at_its_offsets(
    steps: list[tuple[str, int, int]], seed: int, triggers: list[int], config: RetrievalConfig, draw: int
) -> None:
    stream = Stream(seed)
    wanted = [f"i{number}" for number in triggers]
    with tempfile.TemporaryDirectory() as folder, open_index(Path(folder, "store")) as index:
        url = str(Path(folder, "snapshots"))
        publisher = Publisher(index.view, 0, target_at(url), RetrievalConfig(), 2)
        publisher.full()
        follower = SnapshotFollower(url)
        assert follower.refresh()
        disturbed = False
        for what, count, distinct in [*steps, ("delta", 0, 0)]:
            if what == "rebalance":
                before = (index.view.totals.splits, index.view.totals.merges)
                rebalance(index)
                disturbed |= before != (index.view.totals.splits, index.view.totals.merges)
            elif what == "hand over":
                publisher.close()
                publisher = Publisher(index.view, 0, target_at(url), RetrievalConfig(), 2)
                publisher.go_on(follower.readers[0])
            elif what in {"full", "delta"}:
                published = publisher.full() if what == "full" else publisher.delta()
                disturbed &= what != "full"
                assert follower.refresh() == (published is not None)
                reader = follower.readers[0]
                assert reader.at.offsets == index.view.positions
                assert_items_are_the_views(index, reader, stream.names)
                assert_filed_soundly(index, reader)
                again = SnapshotFollower(url)
                again.refresh()
                assert_same_leaves(reader, again.readers[0])
                for settings_, exact in ((config, False), (EVERYTHING, True)):
                    if disturbed and not exact:
                        continue
                    mine = retrieve(reader, wanted, settings_, NOW_MS, draw)
                    its = retrieve(ViewReader(index.view), wanted, settings_, NOW_MS, draw)
                    assert mine.missing == its.missing
                    if not disturbed:
                        assert same(mine, its)
                    else:
                        assert set(mine.ordinals.tolist()) == set(its.ordinals.tolist())
                        np.testing.assert_allclose(np.sort(mine.scores), np.sort(its.scores), atol=1e-5)
                if not disturbed:
                    assert_same_leaves(reader, ViewReader(index.view))
            else:
                index.writer.apply(stream.batch(what, count, distinct))
        publisher.close()
        assert not index.view.watchers


def assert_items_are_the_views(index: Index, reader: SnapshotReader, names: list[str]) -> None:
    view = ViewReader(index.view)
    asked = [*names, "nobody", *names[:2]]
    mine, its = reader.locate(asked), view.locate(asked)
    assert mine.ordinals.tolist() == its.ordinals.tolist()
    assert mine.missing == its.missing
    assert mine.vectors.tobytes() == its.vectors.tobytes()
    every = np.arange(len(index.view.ids))
    for facet in range(FACETS):
        assert reader.vectors(facet, every).tobytes() == view.vectors(facet, every).tobytes()
    for window in range(2):
        assert reader.engagement(every, window, NOW_MS).tobytes() == view.engagement(every, window, NOW_MS).tobytes()
    assert reader.created_at(every).tolist() == view.created_at(every).tolist()
    assert reader.item_ids(every) == view.item_ids(every)


def assert_filed_soundly(index: Index, reader: SnapshotReader) -> None:
    """Each live item in one leaf of each facet: that which it is said to be in, and one its raw index may lead to."""
    items, stored = index.view.items, reader.stored
    live = np.flatnonzero(items["state"] == ItemState.LIVE)
    located = reader.locate([index.view.ids[ordinal] for ordinal in live])
    for facet in range(FACETS):
        leaves, centroids = reader.centroids(facet)
        assert len(set(leaves.tolist())) == len(leaves) == len(centroids)
        found = {leaf: reader.members(facet, leaf, 10**9).tolist() for leaf in leaves.tolist()}
        assert sorted(chain.from_iterable(found.values())) == live.tolist()
        leaf_of = {ordinal: leaf for leaf, members in found.items() for ordinal in members}
        assert [leaf_of[ordinal] for ordinal in live.tolist()] == located.leaves[:, facet].tolist()
        raws, offsets = stored[f"f{facet}.raws"].tolist(), stored[f"f{facet}.route_offsets"]
        for ordinal in live.tolist():
            raw = int(items["raw"][ordinal, facet])
            if raw in raws:
                at = raws.index(raw)
                assert leaf_of[ordinal] in stored[f"f{facet}.route_leaves"][offsets[at] : offsets[at + 1]]
            if reader._item_row[ordinal] < 0:
                assert leaf_of[ordinal] == stored["leaf"][ordinal, facet]


def assert_same_leaves(one: Any, other: Any) -> None:
    for facet in range(FACETS):
        (mine, centroids), (its, its_centroids) = one.centroids(facet), other.centroids(facet)
        assert mine.tolist() == its.tolist()
        assert centroids.tobytes() == its_centroids.tobytes()
        for leaf in mine.tolist():
            for limit in (1, 10**6):
                assert one.members(facet, leaf, limit).tolist() == other.members(facet, leaf, limit).tolist()
