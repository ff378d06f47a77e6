"""Pairs: who may be whose trigger."""

from __future__ import annotations

import numpy as np
import pytest

from model_runtime.training.data import TrainingLog
from model_runtime.training.pairs import PairSampler
from schemas.artifact import FacetLabel
from schemas.events import ItemContent

HOUR = 3_600_000
ALWAYS = (0, 1 << 60)


def log_of(rows, categories=None) -> TrainingLog:
    """Rows are (user, item, hour, value, session), in time order."""
    columns = list(zip(*rows, strict=True))
    items = max(columns[1]) + 1
    categories = categories or [["all"]] * items
    return TrainingLog(
        item_ids=tuple(str(i) for i in range(items)),
        contents=tuple(ItemContent(title=str(i), categories=categories[i]) for i in range(items)),
        created_at=np.zeros(items, np.int64),
        user=np.array(columns[0], np.int32),
        item=np.array(columns[1], np.int32),
        time=(np.array(columns[2]) * HOUR).astype(np.int64),
        kind=np.zeros(len(rows), np.int32),
        value=np.array([np.nan if v is None else v for v in columns[3]], np.float32),
        session=np.array(columns[4], np.int32),
        users=max(columns[0]) + 1,
        kinds=("rating",),
        skipped={},
    )


HISTORY = log_of(
    [
        (0, 0, 0, 5, 0),
        (1, 3, 0.5, None, -1),
        (0, 1, 1, 2, 0),
        (0, 2, 2, 4, 1),
        (1, 4, 30, 5, -1),
        (0, 3, 40, 5, 1),
    ],
    [["a"], ["b"], ["a"], ["b"], ["b"]],
)


def pairs(label: FacetLabel, reach: int = 10, log: TrainingLog = HISTORY) -> set[tuple[int, int]]:
    drawn = PairSampler(log, label, reach).draw(2_000, 2, ALWAYS, np.random.default_rng(0))
    assert np.allclose(drawn.weight.sum(1), 1)
    some = drawn.weight > 0
    candidate = np.repeat(drawn.candidate[:, None], 2, axis=1)
    return set(zip(drawn.trigger[some].tolist(), candidate[some].tolist(), strict=True))


def test_next_pairs_run_forward_within_one_user_and_the_window():
    assert pairs(FacetLabel(name="n", kind="next", window_s=86_400)) == {(0, 1), (0, 2), (1, 2)}
    assert pairs(FacetLabel(name="n", kind="next", window_s=5_000)) == {(0, 1), (1, 2)}
    assert pairs(FacetLabel(name="n", kind="next", window_s=10**8)) == {
        (0, 1),
        (0, 2),
        (1, 2),
        (0, 3),
        (1, 3),
        (2, 3),
        (3, 4),
    }


def test_a_window_is_closed_at_both_ends():
    assert pairs(FacetLabel(name="n", kind="next", window_s=3_600)) == {(0, 1), (1, 2)}
    assert not pairs(FacetLabel(name="n", kind="next", window_s=3_599))


def test_reach_bounds_how_many_engagements_back_a_trigger_lies():
    assert pairs(FacetLabel(name="n", kind="next", window_s=10**8), reach=1) == {(0, 1), (1, 2), (2, 3), (3, 4)}


def test_explicit_pairs_need_the_value_on_both_sides():
    label = FacetLabel(name="e", kind="explicit", min_value=4, window_s=10**8)
    assert pairs(label) == {(0, 2), (0, 3), (2, 3)}
    without_bound = FacetLabel(name="e", kind="explicit", window_s=10**8)
    assert (3, 4) not in pairs(without_bound)  # one of them carries no value


def test_session_pairs_stay_inside_a_session_whatever_the_time():
    assert pairs(FacetLabel(name="s", kind="session", window_s=1)) == {(0, 1), (2, 3)}


def test_content_pairs_share_a_category():
    assert pairs(FacetLabel(name="c", kind="content", window_s=10**8)) == {(0, 2), (1, 3), (3, 4)}


def test_an_item_is_never_its_own_trigger():
    log = log_of([(0, 0, 0, 1, -1), (0, 0, 1, 1, -1), (0, 1, 2, 1, -1)])
    assert pairs(FacetLabel(name="n", kind="next"), log=log) == {(0, 1)}


def test_later_pairs_run_between_sessions():
    label = FacetLabel(name="l", kind="later", window_s=10**8)
    assert pairs(label) == {(0, 2), (1, 2), (0, 3), (1, 3), (3, 4)}
    assert pairs(label, reach=1) == {(1, 2), (1, 3), (3, 4)}
    assert pairs(FacetLabel(name="l", kind="later", window_s=3_600)) == {(1, 2)}


def test_content_pairs_may_agree_in_an_attribute_or_another_field():
    log = log_of([(0, 0, 0, 1, -1), (0, 1, 1, 1, -1), (0, 2, 2, 1, -1)])
    contents = tuple(
        ItemContent(title="t", tags=["x"] if row else [], language="pt", attributes={"desk": desk})
        for row, desk in enumerate(["a", "b", "a"])
    )
    log = TrainingLog(**{name: getattr(log, name) for name in log.__slots__} | {"contents": contents})

    def agreeing(field):
        return pairs(FacetLabel(name="c", kind="content", field=field), log=log)

    assert agreeing("desk") == {(0, 2)}
    assert agreeing("tags") == {(1, 2)}
    assert agreeing("language") == {(0, 1), (0, 2), (1, 2)}
    assert not agreeing("nothing")


def test_a_nearer_trigger_weighs_more_where_recency_says_so():
    sampler = PairSampler(HISTORY, FacetLabel(name="n", kind="next", window_s=86_400), 10, recency=1)
    drawn = sampler.draw(500, 2, ALWAYS, np.random.default_rng(0))
    mixed = (drawn.candidate == 2) & (np.sort(drawn.trigger, axis=1) == [0, 1]).all(1)
    assert mixed.any()
    assert np.allclose(drawn.weight[mixed], np.where(drawn.trigger[mixed] == 1, 2 / 3, 1 / 3))


def test_candidates_come_from_the_span_asked_for_and_triggers_from_before_it():
    label = FacetLabel(name="n", kind="next", window_s=86_400)
    drawn = PairSampler(HISTORY, label, 10).draw(100, 1, (2 * HOUR, 3 * HOUR), np.random.default_rng(0))
    assert set(drawn.candidate.tolist()) == {2}
    assert set(drawn.trigger.ravel().tolist()) == {0, 1}
    assert PairSampler(HISTORY, label, 10, from_ms=2 * HOUR).positions == 1


def test_a_label_without_pairs_draws_nothing():
    sampler = PairSampler(HISTORY, FacetLabel(name="e", kind="explicit", min_value=9), 10)
    assert sampler.positions == 0
    assert len(sampler.draw(5, 2, ALWAYS, np.random.default_rng(0))) == 0


def test_draws_follow_from_the_generator():
    sampler = PairSampler(HISTORY, FacetLabel(name="n", kind="next"), 10)
    one, two = (sampler.draw(50, 2, ALWAYS, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(one.trigger, two.trigger)


def test_a_heavy_user_costs_no_pairs_in_memory():
    count = 50_000
    log = log_of([(0, i, i / 1e6, 1, -1) for i in range(count)])
    sampler = PairSampler(log, FacetLabel(name="n", kind="next"), count)
    assert sampler.positions == count - 1
    assert len(sampler.draw(1_000, 2, ALWAYS, np.random.default_rng(0))) == 1_000


def test_a_log_before_a_moment_holds_nothing_later():
    before = HISTORY.before(2 * HOUR)
    assert before.time.max() < 2 * HOUR
    assert before.user.tolist() == [0, 1, 0]


def test_items_created_later_leave_with_their_engagements():
    changed = np.array([0, 9 * HOUR, 0, 0, 0])
    log = TrainingLog(**{name: getattr(HISTORY, name) for name in HISTORY.__slots__} | {"created_at": changed})
    before = log.before(5 * HOUR)
    assert before.item_ids == ("0", "2", "3", "4")
    assert [before.item_ids[i] for i in before.item] == ["0", "3", "2"]


def test_unordered_or_ragged_columns_are_refused():
    fields = {name: getattr(HISTORY, name) for name in HISTORY.__slots__}
    with pytest.raises(ValueError, match="ordered by time"):
        TrainingLog(**fields | {"time": HISTORY.time[::-1]})
    with pytest.raises(ValueError, match="differ in length"):
        TrainingLog(**fields | {"user": HISTORY.user[1:]})
    with pytest.raises(ValueError, match="item columns"):
        TrainingLog(**fields | {"item_ids": ("a",)})
