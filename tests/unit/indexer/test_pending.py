"""Engagements that wait: who is released, who is set aside, at which moment exactly."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from indexer import keys
from indexer.pending import Expired, Pending, Waiting, load_pending, settle
from schemas.config import PendingConfig
from schemas.dead_letters import Reason
from schemas.errors import StoreCorruptError
from tests.builders import Collected, Record, batch_of, config, open_index, vector_of

BOUNDS = PendingConfig(max_age_s=10, max_count=3)


def waiting(name: str, at: int, offset: int = 0, source: str = "engagements-0") -> Waiting:
    return Waiting(name, source, offset, "click", at, math.nan, b"")


def times(*moments: int) -> np.ndarray:
    return np.maximum.accumulate(np.array(moments, np.int64))


def test_one_exactly_as_old_as_allowed_waits_on_and_one_a_millisecond_older_does_not() -> None:
    pending = Pending([waiting("a", 5_000, 0), waiting("b", 4_999, 1)])
    settled = settle(pending, [], {}, times(0, 15_000), BOUNDS)
    assert settled.expired == [Expired(waiting("b", 4_999, 1), Reason.ITEM_NEVER_CAME)]
    assert len(pending) == 2  # nothing is changed until it is written


def test_an_item_releases_those_that_are_exactly_as_old_as_allowed() -> None:
    pending = Pending([waiting("a", 5_000, 0), waiting("a", 4_999, 1)])
    settled = settle(pending, [], {"a": 0}, times(0, 15_000), BOUNDS)
    assert settled.released == [(0, waiting("a", 5_000, 0))]
    assert [entry.waiting.offset for entry in settled.expired] == [1]


def test_time_that_passes_after_an_item_came_takes_nothing_from_it() -> None:
    pending = Pending([waiting("a", 0)])
    settled = settle(pending, [], {"a": 0}, times(0, 10_000, 99_000), BOUNDS)
    assert settled.released == [(0, waiting("a", 0))]
    assert not settled.expired


def test_one_that_is_too_old_when_it_comes_is_set_aside_at_once() -> None:
    settled = settle(Pending(), [(0, waiting("a", 0))], {}, times(10_001, 10_001), BOUNDS)
    assert [entry.reason for entry in settled.expired] == [Reason.ITEM_NEVER_CAME]
    assert not settled.held


def test_the_oldest_makes_room_even_if_it_is_the_one_that_comes() -> None:
    pending = Pending([waiting(name, at, at) for name, at in (("a", 3), ("b", 4), ("c", 5))])
    settled = settle(pending, [(0, waiting("d", 2, 9))], {}, times(5, 5), BOUNDS)
    assert settled.expired == [Expired(waiting("d", 2, 9), Reason.PENDING_OVERFLOW)]
    settled = settle(pending, [(0, waiting("d", 6, 9))], {}, times(5, 6), BOUNDS)
    assert settled.expired == [Expired(waiting("a", 3, 3), Reason.PENDING_OVERFLOW)]
    assert settled.held == [waiting("d", 6, 9)]


def test_room_made_by_an_item_earlier_in_the_batch_counts() -> None:
    pending = Pending([waiting("a", at, at) for at in (1, 2, 3)])
    arrivals = [(1, waiting("b", 4, 4)), (2, waiting("b", 5, 5))]
    assert not settle(pending, arrivals, {"a": 0}, times(3, 3, 4, 5), BOUNDS).expired
    late = settle(pending, [(0, arrivals[0][1]), (1, arrivals[1][1])], {"a": 2}, times(3, 4, 5, 5), BOUNDS)
    assert [entry.waiting.occurred_at for entry in late.expired] == [1, 2]
    assert [row.occurred_at for _, row in late.released] == [3]


def test_released_ones_come_in_the_order_of_their_source() -> None:
    rows = [waiting("a", 9, 2), waiting("a", 1, 7), waiting("a", 5, 1, "engagements-1")]
    settled = settle(Pending(rows[::-1]), [(0, waiting("a", 3, 8))], {"a": 1}, times(9, 9, 9), PendingConfig())
    assert [(row.source[-1], row.offset) for _, row in settled.released] == [("0", 2), ("0", 7), ("0", 8), ("1", 1)]


def test_lower_bounds_take_effect_with_the_next_batch_whatever_it_holds(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        clicks = [Record("engagements-0", row, f"i{row}", 1_000 + row, kind="click") for row in range(5)]
        index.writer.apply(batch_of(clicks))
    collected = Collected()
    with open_index(tmp_path / "store", config(pending={"max_count": 2})) as index:
        index.writer.apply(batch_of([Record("items-0", 0, "other", 1_000, vector_of(1))]), collected)
        assert [entry.waiting.offset for entry in collected] == [0, 1, 2]
        assert len(index.pending) == 2
        assert len(list(index.store.scan("pending"))) == 2
        assert index.view.totals.dead_letters == 3


def test_those_that_came_and_went_leave_no_trace_below_an_old_one() -> None:
    """One that waits for long lies at the top of the heap; what is below it must not pile up."""
    pending = Pending([waiting("old", 0)])
    for round_ in range(20_000):
        row = waiting("a", 1 + round_, 1 + round_)
        pending.add(row)
        pending.remove([row])
    assert len(pending) == 1
    assert len(pending.ages()) < 2_000
    assert pending.oldest_ms() == 0


def test_the_same_one_waits_once() -> None:
    pending = Pending([waiting("a", 1), waiting("a", 1)])
    assert len(pending) == 1
    pending.remove([waiting("a", 1), waiting("b", 1)])
    assert len(pending) == 0
    assert pending.oldest_ms() is None


def test_what_is_loaded_is_what_was_kept() -> None:
    record = Record("engagements-12", 2**63, "a\0b", 77, kind="like", value=2.5)
    loaded = load_pending([(keys.pending_key("a\0b", "engagements-12", 2**63), record.encoded)])
    assert loaded.of_item("a\0b") == [Waiting("a\0b", "engagements-12", 2**63, "like", 77, 2.5, record.encoded)]


def test_a_kept_one_that_does_not_decode_is_named() -> None:
    with pytest.raises(StoreCorruptError, match="engagements-0@7 does not decode"):
        load_pending([(keys.pending_key("a", "engagements-0", 7), b"{")])
