"""Recall on a time split, on logs small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model_runtime.training.data import TrainingLog
from schemas.events import ItemContent
from streamer.evaluation.recall import RecallEvaluation, build_requests


def log_of(events, created, users=3) -> TrainingLog:
    """Events are (user, item, time)."""
    user, item, time = (np.array(column) for column in zip(*events, strict=True))
    return TrainingLog(
        item_ids=tuple(f"i{i}" for i in range(len(created))),
        contents=tuple(ItemContent(title=f"{i}") for i in range(len(created))),
        created_at=np.array(created, np.int64),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        time=time.astype(np.int64),
        kind=np.zeros(len(events), np.int32),
        value=np.full(len(events), np.nan, np.float32),
        session=np.full(len(events), -1, np.int32),
        users=users,
        kinds=("click",),
        skipped={},
    )


EVENTS = [(0, 0, 1), (0, 1, 2), (1, 0, 3), (0, 0, 4), (0, 2, 10), (0, 3, 10), (1, 0, 11), (1, 4, 12), (2, 1, 13)]
LOG = log_of(EVENTS, [0, 0, 5, 10, 12])


def test_requests_are_first_meetings_of_users_with_a_history():
    requests = build_requests(LOG, 10)
    assert list(zip(requests.user.tolist(), requests.target.tolist(), requests.time.tolist(), strict=True)) == [
        (0, 2, 10),
        (0, 3, 10),
        (1, 4, 12),
    ]
    assert requests.eligible == 3


def test_triggers_are_the_latest_distinct_items_strictly_before_the_moment():
    triggers = build_requests(LOG, 10).triggers
    assert triggers[0].tolist() == [0, 1, -1, -1, -1]
    assert triggers[1].tolist() == [0, 1, -1, -1, -1]  # not item 2, which came at the very same moment
    assert triggers[2].tolist() == [0, -1, -1, -1, -1]


def test_at_most_five_triggers_are_kept():
    log = log_of([(0, i, i) for i in range(9)], [0] * 9)
    assert build_requests(log, 8).triggers.tolist() == [[7, 6, 5, 4, 3]]


def test_earlier_engagements_of_the_target_are_those_strictly_before():
    log = log_of([(0, 0, 1), (1, 1, 2), (2, 1, 3), (0, 1, 3), (1, 0, 9)], [0, 0])
    requests = build_requests(log, 3)
    assert dict(zip(requests.user.tolist(), requests.earlier.tolist(), strict=True)) == {0: 1, 1: 1}


def test_the_span_ends_before_its_end_and_a_sample_is_seeded():
    assert len(build_requests(LOG, 10, 12)) == 2
    one, two = (build_requests(LOG, 10, max_requests=2, seed=5) for _ in range(2))
    assert len(one) == 2
    assert one.eligible == 3
    assert np.array_equal(one.target, two.target)


def many_items(count=1_000, pool_from=0):
    """One user with one trigger, and one request for item 1."""
    created = [0, 0] + [pool_from] * (count - 2)
    return log_of([(0, 0, 1), (0, 1, 10)], created, users=1)


def vectors_where(log, target_similarity, others):
    vectors = np.zeros((len(log.item_ids), 1, 2), np.float16)
    vectors[:] = [others, np.sqrt(1 - others**2)]
    vectors[0] = [1, 0]
    vectors[1] = [target_similarity, 0]
    return vectors


def evaluation(log, from_ms=5):
    return RecallEvaluation(log, build_requests(log, from_ms))


def test_exact_search_finds_what_is_most_similar_to_a_trigger():
    log = many_items()
    assert evaluation(log).exact(vectors_where(log, 0.9, 0.5)).recall == {100: 1.0, 500: 1.0}
    assert evaluation(log).exact(vectors_where(log, 0.1, 0.5)).recall == {100: 0.0, 500: 0.0}


def test_items_created_later_are_not_in_the_pool():
    log = many_items(pool_from=11)
    result = evaluation(log).exact(vectors_where(log, 0.1, 0.5))
    assert result.recall[100] == 1.0
    assert result.scored_per_query == 1


def test_ties_count_against_the_target():
    log = many_items()
    assert evaluation(log).exact(np.ones((1_000, 1, 2), np.float16)).recall[500] == 0
    assert evaluation(log).popularity(None).recall[500] == 0


def test_items_the_user_had_touched_are_not_in_the_pool():
    log = log_of([*((0, i, 1) for i in range(2, 700)), (0, 0, 2), (0, 1, 10)], [0] * 700, users=1)
    assert evaluation(log).exact(vectors_where(log, 0.1, 0.5)).recall[100] == 1.0


def test_within_leaves_only_items_of_a_triggers_leaf_are_scored():
    log = many_items()
    vectors, raw = vectors_where(log, 0.9, 0.5), np.zeros((1_000, 1), np.uint32)
    raw[500:] = 7
    result = evaluation(log).within_leaves(vectors, raw)
    assert result.recall[100] == 1.0
    assert result.scored_per_query == 499
    raw[1] = 7
    assert evaluation(log).within_leaves(vectors, raw).recall[500] == 0


def test_one_leaf_for_all_is_exact_search():
    rng = np.random.default_rng(0)
    log = log_of(
        [(u, int(i), t) for t, (u, i) in enumerate(zip([0, 1] * 60, rng.integers(0, 900, 120), strict=True))],
        [0] * 900,
        users=2,
    )
    vectors = rng.standard_normal((900, 2, 8)).astype(np.float16)
    measured = evaluation(log, 60)
    exact, leaves = measured.exact(vectors), measured.within_leaves(vectors, np.zeros((900, 2), np.uint32))
    assert exact.recall == leaves.recall
    assert exact.scored_per_query == leaves.scored_per_query


def test_popularity_counts_only_what_came_before_and_can_forget():
    others = [(1, i, 1) for i in range(2, 600) for _ in range(2)]
    recent = [(2, 1, 900)]
    log = log_of([*others, (0, 0, 1), *recent, (0, 1, 1_000)], [0] * 600)
    asked = evaluation(log, 1_000)
    assert asked.popularity(None).recall[100] == 0
    assert asked.popularity(0.1).recall[100] == 1
    assert "half-life" in asked.popularity(0.1).name


def test_a_retrieval_is_asked_with_ids_and_judged_by_rank_among_the_eligible():
    asked = []

    def retrieve(triggers, at_ms, k):
        asked.append((list(triggers), at_ms, k))
        return ["unknown", "i0", "i4", "i2", "i3"], 17

    result = evaluation(LOG, 10).retrieval("index", retrieve)
    assert asked[0] == (["i0", "i1"], 10, 502)
    assert result.recall[100] == 1.0
    assert result.scored_per_query == 17


def test_a_retrieval_that_returns_nothing_finds_nothing():
    assert evaluation(LOG, 10).retrieval("index", lambda *_: ([], 0)).recall == {100: 0.0, 500: 0.0}


def test_the_report_counts_requests_and_cold_ones():
    measured = evaluation(LOG, 10)
    report = measured.report([measured.popularity(None)])
    assert (report.requests, report.cold_requests, report.eligible) == (3, 3, 3)
    assert report.pool == pytest.approx((1 + 2 + 4) / 3)
    assert math.isnan(evaluation(LOG, 99).popularity(None).recall[100])
