"""The writer against the oracle: whatever the stream, the cuts, the rebalancing and the restarts in between."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from indexer.index import Index
from indexer.logical_state import differences, logical_state
from indexer.rebalance.apply import apply_bounds, apply_plan
from indexer.rebalance.plan import plan_round
from indexer.rebalance.plans import Plan
from indexer.seen import Seen
from schemas.config import Config
from tests.builders import (
    Collected,
    Record,
    assert_sound,
    assert_view_is_loaded,
    batch_of,
    config,
    open_index,
    rebalance,
    vector_of,
)
from tests.reference import ReferenceIndex

ITEM_SOURCES, ENGAGEMENT_SOURCES = ("items-0", "items-1"), ("engagements-0", "engagements-1")
NAMES = ["a", "b", "c\0d", "é" * 128, "e", "f", "g", "h"]
TIMES = st.one_of(
    st.integers(0, 40_000),
    st.integers(0, 10**9),
    # one epoch is 256 half-lives: 15,360 s and 921,600 s
    st.sampled_from([15_359_999, 15_360_000, 921_600_000, 10**12, 253_402_300_799_999]),
)
PENDING = st.builds(
    lambda age, count: {"max_age_s": age, "max_count": count},
    st.sampled_from([1, 10, 10**6, 10**9]),
    st.sampled_from([0, 1, 3, 1_000]),
)
DEDUPE = st.builds(
    lambda enabled, window, count: {"enabled": enabled, "window_s": window, "max_count": count},
    st.sampled_from([True, True, False]),
    st.sampled_from([1, 10, 10**6, 10**9]),
    st.sampled_from([1, 2, 3, 1_000]),
)


@st.composite
def streams(draw: Any, max_size: int = 80) -> list[Record]:
    """Records of two partitions of each stream in reading order; an item's are all in one of each."""
    offsets: dict[str, int] = {}
    out = []
    for _ in range(draw(st.integers(1, max_size))):
        number = draw(st.integers(0, len(NAMES) - 1))
        at = draw(TIMES)
        what = draw(st.sampled_from(["upsert", "upsert", "upsert", "delete", "engage", "engage", "engage"]))
        source = (ENGAGEMENT_SOURCES if what == "engage" else ITEM_SOURCES)[number % 2]
        offset = offsets.get(source, 0) + draw(st.sampled_from([0, 0, 0, 3]))  # a log may have gaps
        offsets[source] = offset + 1
        record = Record(source, offset, NAMES[number], at)
        if what == "upsert":
            record = record._replace(vector=vector_of(draw(st.integers(0, 5))))
        elif what == "engage":
            value = draw(st.one_of(st.none(), st.floats(-1e6, 1e6)))
            record = record._replace(kind=draw(st.sampled_from(["click", "like", "other", "k3", "k4"])), value=value)
            record = record._replace(event_id=draw(st.sampled_from([None, "e1", "e2", "e3", "e4", "é" * 128])))
        out.append(record)
    return out


class Run:
    """One store fed step by step, checked after each."""

    def __init__(self, path: Path, settings: Config) -> None:
        self.path = path
        self.settings = settings
        self.collected = Collected()
        self.index: Index = open_index(path, settings)
        self.late: list[Plan] = []

    def feed(self, records: list[Record]) -> None:
        self.index.writer.apply(batch_of(records), self.collected)
        self.check()

    def feed_again(self, records: list[Record]) -> None:
        """Records that may be applied already, wholly or in part."""
        self.index.writer.apply(batch_of(records), self.collected, again=True)
        self.check()

    def plan(self) -> None:
        """Plans now, to be applied later, when the leaves may have changed."""
        self.late += plan_round(self.index.view, self.index.view.totals.bounds, self.settings.rebalance, merges=True)

    def apply_late(self) -> None:
        plans, self.late = self.late, []
        for plan in plans:
            apply_plan(self.index.writer, plan, self.index.view.totals.bounds)
            self.check()

    def reopen(self) -> None:
        self.index.close()
        self.late = []
        self.index = open_index(self.path, self.settings)
        self.check()

    def check(self) -> None:
        assert_view_is_loaded(self.index)
        seen = self.index.writer.seen
        if seen is not None:
            loaded = Seen(self.settings.dedupe, self.index.store.scan("seen"))
            assert list(seen.entries()) == list(loaded.entries())
        assert_sound(self.index.store, allow_unbalanced=True)

    def close(self) -> None:
        self.index.close()


@given(
    data=st.data(),
    records=streams(),
    pending=PENDING,
    dedupe=DEDUPE,
    max_kinds=st.sampled_from([1, 2, 3, 32]),
    bounds=st.sampled_from([(1, 2), (1, 16), (2, 5)]),
)
def test_a_store_means_what_the_oracle_says_whatever_the_cuts_the_rebalancing_and_the_restarts(
    data: st.DataObject,
    records: list[Record],
    pending: dict[str, int],
    dedupe: dict[str, int],
    max_kinds: int,
    bounds: tuple[int, int],
) -> None:
    low, high = bounds
    settings = config(
        pending=pending, dedupe=dedupe, limits={"max_kinds": max_kinds}, rebalance={"low": low, "high": high}
    )
    oracle = ReferenceIndex(settings.pending, max_kinds, settings.dedupe)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder, "store"), settings)
        apply_bounds(run.index.writer, bounds)
        try:
            done = 0
            while done < len(records):
                size = data.draw(st.sampled_from([1, 2, 5, 20, 100]))
                now = records[done : done + size]
                back = data.draw(st.sampled_from([None, None, 0, 1, 7, 100]))
                if back is None:
                    run.feed(now)
                else:
                    run.feed_again(records[max(0, done - back) : done + size])
                done += len(now)
                for record in now:
                    oracle.apply(record)
                step = data.draw(st.sampled_from(["", "", "plan", "late", "round", "reopen", "idle"]))
                if step == "plan":
                    run.plan()
                elif step == "late":
                    run.apply_late()
                elif step == "round":
                    run.plan()
                    run.apply_late()
                elif step == "reopen":
                    run.reopen()
                elif step == "idle":
                    rebalance(run.index, settings)
                    run.check()
                assert not differences(oracle.state(), logical_state(run.index.store, run.collected.letters()))
            rebalance(run.index, settings)
            assert_sound(run.index.store)
            run.apply_late()
            run.reopen()
            assert not differences(oracle.state(), logical_state(run.index.store, run.collected.letters()))
        finally:
            run.close()
