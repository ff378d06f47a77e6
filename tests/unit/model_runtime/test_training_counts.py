"""Counts as of a moment are those that an index would have had."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.counters import CounterRows, add_engagements, decayed_counts
from model_runtime.training.counts import NEVER, EngagementHistory

HALF_LIVES = (60, 3_600)
ITEMS = 4
EVENTS = st.lists(st.tuples(st.integers(0, ITEMS - 1), st.integers(0, 10**7)), max_size=30)


def in_order(events):
    time = np.array([at for _, at in events], np.int64)
    order = np.argsort(time, kind="stable")
    return np.array([item for item, _ in events], np.int32)[order], time[order]


@settings(deadline=None)
@given(EVENTS, st.integers(0, 10**7))
def test_counts_are_those_of_the_index_at_that_moment(events, moment):
    item, time = in_order(events)
    counts, latest = EngagementHistory(item, time, ITEMS, HALF_LIVES).at(np.arange(ITEMS), np.array([moment]))
    before = time < moment
    rows = CounterRows(
        np.zeros((ITEMS, 1), np.uint32),
        np.zeros((ITEMS, 2), np.int32),
        np.zeros((ITEMS, 2)),
        np.zeros(ITEMS),
        np.full(ITEMS, NEVER, np.int64),
    )
    seen = item[before].astype(np.int64)
    values = np.full(len(seen), np.nan)
    rows = add_engagements(rows, seen, np.zeros_like(seen), time[before], values, HALF_LIVES)
    assert np.allclose(counts[0], decayed_counts(rows, moment, HALF_LIVES), rtol=1e-3)
    assert latest[0].tolist() == rows.last_at.tolist()


def test_nothing_at_or_after_the_moment_is_seen_and_any_items_may_be_asked_about():
    history = EngagementHistory(np.array([1, 0, 1]), np.array([1_000, 2_000, 61_000]), 3, (60,))
    counts, latest = history.at(np.array([2, 1]), np.array([1_000, 1_001, 61_000, 61_001]))
    assert latest.tolist() == [[NEVER, NEVER], [NEVER, 1_000], [NEVER, 1_000], [NEVER, 61_000]]
    assert np.allclose(counts[:, :, 0], [[0, 0], [0, 1], [0, 0.5], [0, 1.5]], rtol=1e-4)
