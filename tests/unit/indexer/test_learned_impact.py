"""The model's own prior inside an index: equal to what the model computes, and followed as time goes on."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from indexer import order
from indexer.counters import CounterRows, add_engagements, decayed_counts
from indexer.order import Impact, Order
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.retrieve import retrieve
from indexer.retrieval.store_reader import StoreReader
from model_runtime.prior import Prior, PriorShape, freeze, initial_weights
from schemas.config import RetrievalConfig
from schemas.prior import LearnedPrior
from schemas.store import Totals
from tests.builders import (
    HALF_LIVES_S,
    Record,
    assert_lists_are_sound,
    assert_view_is_loaded,
    batch_of,
    config,
    fill,
    learned_prior,
    open_index,
    store_meta,
)

STORED_S = (60, 3_600, 86_400)
HOUR_MS = 3_600_000


def trained(hidden: tuple[int, ...], seed: int) -> Prior:
    """A prior that reads two of the stored counts, in another order."""
    rng = np.random.default_rng(seed)
    shape = PriorShape((86_400, 60), hidden)
    made = initial_weights(shape, rng)
    return Prior(shape, freeze({name: values + rng.normal(0, 0.3, values.shape) for name, values in made.items()}), 0.3)


@given(hidden=st.sampled_from([(), (32,), (7, 5)]), seed=st.integers(0, 2**32))
def test_an_index_computes_what_the_model_does(hidden: tuple[int, ...], seed: int) -> None:
    rng, n, now = np.random.default_rng(seed), 60, 40 * 86_400_000
    prior = trained(hidden, seed)
    none = CounterRows(
        np.zeros((n, 1), np.uint32), np.zeros((n, 3), np.int32), np.zeros((n, 3)), np.zeros(n), np.zeros(n, np.int64)
    )
    times = np.sort(now - rng.exponential(86_400_000, 500).astype(np.int64))
    target = (n * rng.random(500) ** 3).astype(np.int64)
    rows = add_engagements(none, target, np.zeros(500, np.int64), times, np.full(500, np.nan), STORED_S)
    created_at = now - rng.exponential(86_400_000, n).astype(np.int64)
    landmark = now - int(rng.integers(0, HOUR_MS))

    impact = Impact(Order(), store_meta(half_lives_s=STORED_S, prior=prior.learned(STORED_S)))
    found = impact.heats(rows, created_at, landmark)
    moments = np.maximum(landmark, rows.last_at)
    counts = decayed_counts(rows, landmark, STORED_S)[:, list(prior.windows(STORED_S))]
    expected = prior.temperature * prior.score(counts, (moments - created_at) / 1_000)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_time_alone_changes_what_items_are_worth_once_enough_changed(tmp_path) -> None:
    with open_index(tmp_path / "store", prior=learned_prior()) as index:
        fill(index, range(40))
        view, before = index.view, index.view.landmark
        worth = view.heats(np.arange(40))
        clicks = [Record("engagements-0", row, f"i{row % 3}", HOUR_MS + row, kind="click") for row in range(3)]
        index.writer.apply(batch_of(clicks))
        assert view.landmark > before
        assert HOUR_MS - view.impact.stride_ms < view.landmark <= HOUR_MS + 2
        assert (view.heats(np.arange(3, 40)) != worth[3:]).any()
        assert_lists_are_sound(view)
        assert_view_is_loaded(index)


def test_few_changes_in_a_large_index_do_not_pay_for_all_anew_until_much_time_has_passed() -> None:
    impact = Impact(Order(), store_meta(prior=learned_prior()))
    stride = impact.stride_ms
    later = 9 * stride
    assert impact.next(0, later, 0, 10_000) == later
    assert impact.next(0, later, 10_000, 90_000) == later
    assert impact.next(0, later, 10_000, 100_000) == 0
    assert impact.next(0, 2 * later, 10_000, 100_000) == 2 * later
    configured = Impact(Order(), store_meta())
    assert configured.next(0, 100 * HOUR_MS, 0, 100_000) == configured.as_of(
        Totals(next_leaf=[], stream_time_ms=100 * HOUR_MS)
    )


def test_who_opens_a_large_index_finds_the_order_that_it_had(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(order, "_FREE", 0)
    everything = RetrievalConfig(k=20, indices=1_000, probes=1_000, similarity_weight=0)
    with open_index(tmp_path / "store", prior=learned_prior()) as index:
        fill(index, range(200))
        index.writer.apply(batch_of([Record("engagements-0", 0, "i9", 1_990, kind="click")]))
        before = index.view.landmark
        for step in range(1, 9):
            clicks = [Record("engagements-0", step, f"i{step}", 2_000 + 1_000 * step, kind="click")]
            index.writer.apply(batch_of(clicks))
            assert_view_is_loaded(index)
        assert index.view.landmark == before
        answers = [
            retrieve(reader, ["i5"], everything, HOUR_MS)
            for reader in (ViewReader(index.view), StoreReader(index.store))
        ]
    with open_index(tmp_path / "store", prior=learned_prior()) as index:
        answers.append(retrieve(ViewReader(index.view), ["i5"], everything, HOUR_MS))
    for each in answers[1:]:
        assert each.ordinals.tolist() == answers[0].ordinals.tolist()
        assert each.scores.tolist() == answers[0].scores.tolist()


def test_an_event_dated_in_the_future_does_not_age_everybody(tmp_path) -> None:
    now = time.time_ns() // 1_000_000
    with open_index(tmp_path / "store", prior=learned_prior()) as index:
        fill(index, range(40), at=now)
        worth = index.view.heats(np.arange(40))
        index.writer.apply(batch_of([Record("engagements-0", 0, "i0", now + 24 * HOUR_MS, kind="click")]))
        assert index.view.landmark <= time.time_ns() // 1_000_000
        np.testing.assert_allclose(index.view.heats(np.arange(1, 40)), worth[1:], atol=0.02)


@pytest.mark.parametrize(
    "wrong",
    [
        {"parameters": "nan"},
        {"parameters": 1e300},
        {"temperature": float("inf")},
        {"windows": (-1, 0)},
        {"windows": (7, 9)},
    ],
)
def test_a_prior_that_no_index_could_evaluate_is_refused(wrong) -> None:
    prior = learned_prior().model_dump()
    if "parameters" in wrong:
        wrong = {"parameters": (float(wrong["parameters"]), *prior["parameters"][1:])}
    with pytest.raises(ValidationError):
        store_meta(prior=LearnedPrior(**(prior | wrong)))


def test_the_models_prior_takes_the_place_of_the_configured_one(tmp_path) -> None:
    with open_index(tmp_path / "store", config(retrieval={"order_slack": 0}), prior=learned_prior()) as index:
        fill(index, range(30))
        clicks = [Record("engagements-0", row, f"i{row % 7}", 60_000 + row, kind="click") for row in range(40)]
        index.writer.apply(batch_of(clicks))
        everything = RetrievalConfig(k=100, indices=1_000, probes=1_000, similarity_weight=0, engagement_weight=9)
        for reader in (ViewReader(index.view), StoreReader(index.store)):
            worth = reader.worth(np.arange(30))
            found = retrieve(reader, ["i0"], everything, 10 * HOUR_MS)
            assert worth is not None
            np.testing.assert_array_equal(found.scores, worth[found.ordinals])
            none = retrieve(reader, ["i0"], everything.model_copy(update={"prior_weight": 0.0}), 10 * HOUR_MS)
            assert not none.scores.any()
    with open_index(tmp_path / "other") as index:
        assert ViewReader(index.view).worth(np.arange(0)) is None
        assert index.view.meta.half_lives_s == HALF_LIVES_S
