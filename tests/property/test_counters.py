"""Counters: the same bits however a stream is cut, and decayed counts that are what they claim to be."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.counters import EPOCH_HALF_LIVES, CounterRows, add_engagements, counters_at, decayed_counts
from tests.reference import decay

ITEMS, KINDS = 3, 2
EPOCH_S = EPOCH_HALF_LIVES * 60
HALF_LIVES = st.lists(st.sampled_from([1, 60, 3_600, 604_800]), min_size=1, max_size=3, unique=True).map(tuple)
TIMES = st.one_of(
    st.integers(0, 10_000_000),
    st.integers(0, 20).map(lambda epoch: epoch * EPOCH_S * 1_000),  # exactly where an epoch of the minute begins
    st.integers(0, 253_402_300_799_999),
)


class Engaged(NamedTuple):
    item: int
    kind: int
    at: int
    value: float


ENGAGED = st.builds(
    Engaged,
    st.integers(0, ITEMS - 1),
    st.integers(0, KINDS - 1),
    TIMES,
    st.one_of(st.just(math.nan), st.floats(-1e9, 1e9)),
)


def nothing(windows: int) -> CounterRows:
    return CounterRows(
        np.zeros((ITEMS, KINDS), np.uint32),
        np.zeros((ITEMS, windows), np.int32),
        np.zeros((ITEMS, windows)),
        np.zeros(ITEMS),
        np.zeros(ITEMS, np.int64),
    )


def add(rows: CounterRows, stream: list[Engaged], half_lives: tuple[int, ...]) -> CounterRows:
    return add_engagements(
        rows,
        np.array([each.item for each in stream], np.int64),
        np.array([each.kind for each in stream], np.int64),
        np.array([each.at for each in stream], np.int64),
        np.array([each.value for each in stream]),
        half_lives,
    )


def assert_same_bits(one: CounterRows, other: CounterRows) -> None:
    for name in ("counts", "epochs", "decayed", "value_sum", "last_at"):
        mine, its = getattr(one, name), getattr(other, name)
        assert mine.dtype == its.dtype
        assert mine.tobytes() == its.tobytes(), name


@given(stream=st.lists(ENGAGED, max_size=60), cuts=st.lists(st.integers(0, 60), max_size=6), half_lives=HALF_LIVES)
def test_the_same_stream_gives_the_same_bits_however_it_is_cut(
    stream: list[Engaged], cuts: list[int], half_lives: tuple[int, ...]
) -> None:
    whole = add(nothing(len(half_lives)), stream, half_lives)
    parts = nothing(len(half_lives))
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    for start, end in pairwise(edges):
        parts = add(parts, stream[start:end], half_lives)
    assert_same_bits(whole, parts)


@given(stream=st.lists(ENGAGED, max_size=60), half_lives=HALF_LIVES)
def test_one_batch_gives_what_one_engagement_after_the_other_gives(
    stream: list[Engaged], half_lives: tuple[int, ...]
) -> None:
    found = add(nothing(len(half_lives)), stream, half_lives)
    for item in range(ITEMS):
        mine = [each for each in stream if each.item == item]
        assert found.counts[item].tolist() == [sum(each.kind == kind for each in mine) for kind in range(KINDS)]
        assert found.last_at[item] == max((each.at for each in mine), default=0)
        total = 0.0
        for each in mine:
            total += 0.0 if math.isnan(each.value) else each.value
        assert float(found.value_sum[item]).hex() == total.hex()
        for window, half_life in enumerate(half_lives):
            sums = 0, 0.0
            for each in mine:
                sums = decay(*sums, each.at, half_life)
            assert (found.epochs[item, window], float(found.decayed[item, window]).hex()) == (sums[0], sums[1].hex())


@given(
    start=st.integers(0, 10**12),
    ages=st.lists(st.integers(0, 100 * 3_600_000), min_size=1, max_size=30),
    half_lives=HALF_LIVES,
)
def test_a_decayed_count_is_the_sum_of_halved_weights(start: int, ages: list[int], half_lives: tuple[int, ...]) -> None:
    now = start + max(ages)
    stream = [Engaged(0, 0, now - age, math.nan) for age in ages]
    found = decayed_counts(add(nothing(len(half_lives)), stream, half_lives), now, half_lives)
    for window, half_life in enumerate(half_lives):
        expected = math.fsum(2.0 ** (-age / (half_life * 1_000)) for age in ages)
        # A weight is taken from a table of 4,096 steps per half-life: at most 1/4096 half-life too old.
        assert found[0, window] == pytest.approx(expected, rel=2e-4, abs=1e-60)
    assert not found[1:].any()


def test_what_comes_late_weighs_as_if_it_had_come_in_time() -> None:
    stream = [Engaged(0, 0, at * 1_000, math.nan) for at in (0, 60, 2 * EPOCH_S, 2 * EPOCH_S + 30)]
    now, half_lives = (2 * EPOCH_S + 60) * 1_000, (60,)
    in_time = decayed_counts(add(nothing(1), stream, half_lives), now, half_lives)
    late = decayed_counts(add(nothing(1), stream[::-1], half_lives), now, half_lives)
    np.testing.assert_allclose(in_time, late, rtol=1e-12)


def test_the_input_is_left_as_it_is() -> None:
    before = add(nothing(1), [Engaged(0, 0, 1_000, 2.0)], (60,))
    copy = CounterRows(*(getattr(before, name).copy() for name in CounterRows.__slots__))
    add(before, [Engaged(0, 1, 10**12, 3.0)], (60,))
    assert_same_bits(before, copy)


def test_counts_long_after_the_last_engagement_fade_to_nothing_without_a_warning() -> None:
    rows = add(nothing(1), [Engaged(0, 0, 0, math.nan)], (1,))
    assert decayed_counts(rows, 253_402_300_799_999, (1,))[0, 0] < 1e-200


@given(
    decayed=st.lists(st.floats(0, 1e9), min_size=1, max_size=5),
    half_lives=HALF_LIVES,
    now=TIMES,
    later=st.integers(0, 10_000_000),
)
def test_counters_made_of_decayed_counts_decay_on(
    decayed: list[float], half_lives: tuple[int, ...], now: int, later: int
) -> None:
    each = np.tile(np.array(decayed)[:, None], (1, len(half_lives)))
    rows = counters_at(each, now, half_lives)
    np.testing.assert_allclose(decayed_counts(rows, now, half_lives), each, rtol=1e-3)
    left = np.exp2(-later / (np.array(half_lives) * 1_000.0))
    # What is next to nothing, after hundreds of half-lives, loses its digits on the way.
    np.testing.assert_allclose(decayed_counts(rows, now + later, half_lives), each * left, rtol=1e-3, atol=1e-200)
