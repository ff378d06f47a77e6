"""What a step sees: who is a column, of what moment, and with which correction."""

from __future__ import annotations

import numpy as np
import pytest

from model_runtime import prior
from model_runtime.training.batches import NO_COLUMN, BatchSource
from model_runtime.training.counts import EngagementHistory
from model_runtime.training.data import TrainingLog
from schemas.artifact import FacetLabel
from schemas.events import ItemContent
from schemas.training import PriorConfig, TrainingConfig

ITEMS, EVENTS, SPAN = 200, 3_000, 10**8
HALF_LIVES = (3_600, 36_000)


def config(**changes) -> TrainingConfig:
    return TrainingConfig(
        **{
            "labels": (FacetLabel(name="next", kind="next", window_s=10**6),),
            "pairs": 40,
            "head": 20,
            "negatives": 30,
            "moments": 4,
            "cell_engagements": 600,
            "prior": PriorConfig(half_lives_s=HALF_LIVES),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def log() -> TrainingLog:
    """Items are born all the time and engaged at any time after."""
    rng = np.random.default_rng(0)
    created = np.sort(rng.integers(0, SPAN // 2, ITEMS))
    time = np.sort(rng.integers(SPAN // 10, SPAN, EVENTS))
    item = (rng.random(EVENTS) ** 2 * np.searchsorted(created, time)).astype(np.int32)
    return TrainingLog(
        item_ids=tuple(str(i) for i in range(ITEMS)),
        contents=tuple(ItemContent(title=str(i)) for i in range(ITEMS)),
        created_at=created,
        user=rng.integers(0, 50, EVENTS).astype(np.int32),
        item=item,
        time=time,
        kind=np.zeros(EVENTS, np.int32),
        value=np.full(EVENTS, np.nan, np.float32),
        session=np.full(EVENTS, -1, np.int32),
        users=50,
        kinds=("click",),
        skipped={},
    )


def drawn(log, wanted, count=30, from_ms=0, to_ms=SPAN, seed=0):
    source, rng = BatchSource(log, wanted, from_ms, to_ms), np.random.default_rng(seed)
    return [source.draw(rng) for _ in range(count)]


def moments_of(batch, log, wanted):
    """The moments of a batch, found by its counts: a moment is that at which the inputs are these."""
    times = np.append(log.time, SPAN)
    bounds = np.linspace(0, EVENTS, EVENTS // wanted.cell_engagements * wanted.moments + 1).astype(np.int64)
    columns = batch.items[: batch.columns]
    history = EngagementHistory(log.item, log.time, ITEMS, HALF_LIVES)
    counts, _ = history.at(columns, times[bounds])
    inputs = prior.inputs(counts, (times[bounds][:, None] - log.created_at[columns]) / 1_000)
    same = [np.flatnonzero([np.allclose(one, row, atol=1e-6) for one in inputs])[0] for row in batch.inputs]
    return times[bounds[same]]


def test_pairs_have_the_latest_moment_before_them_and_were_born_by_then(log):
    wanted = config()
    for batch in drawn(log, wanted):
        moments, pairs = moments_of(batch, log, wanted), batch.facets[0]
        assert (np.diff(moments) > 0).all()
        assert (log.created_at[batch.items[pairs.positive]] <= moments[pairs.moment]).all()


def test_columns_are_the_head_with_certainty_and_a_sample_of_the_rest(log):
    wanted = config()
    for batch in drawn(log, wanted):
        weight = batch.offset.max(0)
        assert (weight == 0).sum() <= wanted.head
        certain, sampled = weight == 0, (weight > 0)
        assert sampled.sum() <= wanted.negatives
        assert len(np.unique(weight[sampled])) == 1
        rest = np.exp(weight[sampled][0]) * wanted.negatives
        assert rest + wanted.head <= ITEMS + 0.01
        assert set(batch.offset.ravel()) <= {np.float32(NO_COLUMN), *weight[certain | sampled]}


def test_the_unborn_and_the_long_forgotten_are_no_columns(log):
    wanted = config(alive_s=20_000)
    history = EngagementHistory(log.item, log.time, ITEMS, HALF_LIVES)
    for batch in drawn(log, wanted):
        moments, columns = moments_of(batch, log, wanted), batch.items[: batch.columns]
        _, latest = history.at(columns, moments)
        latest = np.maximum(latest, log.created_at[columns])
        dead = (log.created_at[columns] > moments[:, None]) | (latest < moments[:, None] - 20_000_000)
        assert (batch.offset[dead] == np.float32(NO_COLUMN)).all()
        assert (batch.offset[~dead] > -1).sum() > 0


def test_positions_point_at_the_items_meant(log):
    for batch in drawn(log, config()):
        pairs = batch.facets[0]
        triggers = batch.items[pairs.trigger]
        assert (triggers != batch.items[pairs.positive][:, None])[pairs.weight > 0].all()
        known = pairs.own_column >= 0
        assert (batch.items[pairs.own_column[known]] == triggers[known]).all()
        assert not np.isin(triggers[~known], batch.items[: batch.columns]).any()
        assert len(np.unique(batch.items)) == len(batch.items)


def test_what_comes_at_or_after_the_end_changes_nothing(log):
    until = SPAN // 2
    late = log.time >= until
    other = TrainingLog(
        **{name: getattr(log, name) for name in log.__slots__} | {"item": np.where(late, 0, log.item).astype(np.int32)}
    )
    for one, two in zip(drawn(log, config(), to_ms=until), drawn(other, config(), to_ms=until), strict=True):
        assert np.array_equal(one.items, two.items)
        assert np.array_equal(one.inputs, two.inputs)
        assert np.array_equal(one.facets[0].trigger, two.facets[0].trigger)


def test_a_later_start_leaves_out_earlier_candidates_but_not_their_counts(log):
    start = SPAN - SPAN // 20
    batches = drawn(log, config(), from_ms=start)
    assert min(batch.inputs[:, :, -2].max() for batch in batches) > 0
    for batch in batches:
        assert np.isin(batch.items[batch.facets[0].positive], log.item[log.time >= start]).all()


def test_facets_without_pairs_are_named(log):
    labels = (FacetLabel(name="next", kind="next"), FacetLabel(name="liked", kind="explicit"))
    assert BatchSource(log, config(labels=labels), 0, SPAN).idle == ("liked",)
    assert BatchSource(log, config(labels=labels), SPAN, SPAN + 1).idle == ("next", "liked")


def test_what_happened_lately_is_drawn_more_often(log):
    """Five cells of as many engagements; without a half-life each comes as often as the others."""
    counts = {}
    for half_life_s in (None, SPAN / 5 / 1_000):
        source, rng = BatchSource(log, config(), 0, SPAN, half_life_s), np.random.default_rng(0)
        begins = [int(moments_of(source.draw(rng), log, config())[0]) for _ in range(300)]
        _, counts[half_life_s] = np.unique(begins, return_counts=True)
    alike, lately = counts.values()
    assert alike.min() > 30
    assert len(lately) == 5
    assert (lately[1:] > lately[:-1]).all()
    assert lately[-1] > 3 * lately[0]


def test_a_span_without_engagements_can_be_asked_with_a_half_life(log):
    assert BatchSource(log, config(), SPAN, SPAN + 1, 60.0).idle == ("next",)
