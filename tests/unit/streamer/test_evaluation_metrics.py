"""Figures on hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamer.evaluation.metrics import Answers, Slices, Users, at_scored, interval, mean
from streamer.evaluation.outcome import CUTS, Outcome, Record, Requested
from streamer.evaluation.requests import build_requests
from tests.evaluation_logs import log_of


def answers(hits, scored):
    return Answers({cut: np.array(hits, float) for cut in CUTS}, dict.fromkeys(CUTS, scored))


def test_a_mean_over_nothing_is_no_number():
    assert math.isnan(mean(np.ones(3), np.zeros(3, bool)))
    assert mean(np.array([1.0, 0.0, 1.0]), np.array([True, True, False])) == 0.5


def test_slices_hold_only_what_was_in_the_pool():
    six_hours = 6 * 3_600_000
    log = log_of([(0, 0, 1), (0, 1, 2), (0, 2, six_hours), (0, 3, six_hours + 1)], [0, 0, 0, 2])
    requests = build_requests(log, 2)
    requested = Requested(
        np.array([True, True, False]), np.array([0, 9, 0]), np.array([True, False, True]), np.zeros(3)
    )
    outcome = Outcome(requested, {}, {}, {}, {})
    masks = {name: mask.tolist() for name, mask in Slices.of(log, requests, outcome).masks.items()}
    assert masks == {
        "all": [True, True, False],
        "cold": [True, False, False],
        "fresh": [True, False, False],
        "tail": [True, False, False],
    }


def test_answers_are_means_over_seeds():
    outcomes = []
    for hit in (True, False):
        record = Record.of(2)
        record.hits[100][:] = [hit, True]
        record.scored[100][:] = [10, 30]
        outcomes.append(Outcome(Requested.of(2), {}, {"s": record}, {}, {}))
    joined = Answers.over(outcomes, "s")
    assert joined.hits[100].tolist() == [0.5, 1.0]
    assert joined.scored[100] == 20


def test_users_are_resampled_whole():
    users = Users(np.repeat(np.arange(4, dtype=np.int32), 100))
    values = np.repeat([1.0, 0.0, 0.0, 0.0], 100)
    means = users.means(values, np.ones(400, bool))
    assert set(np.unique(np.round(means * 4))) <= set(range(5))  # whole users only
    low, high = interval(means)
    assert low == 0.0
    assert high >= 0.5
    assert means.mean() == pytest.approx(0.25, abs=0.03)


def test_an_interval_of_nothing_is_no_number():
    assert all(map(math.isnan, interval(np.full(3, np.nan))))


def test_between_two_points_of_a_curve_hits_are_mixed_by_log_items_scored():
    points = [answers([0, 0], 10), answers([1, 0], 1_000)]
    assert at_scored(points, 100, 100).tolist() == pytest.approx([0.5, 0.0])
    assert at_scored(points, 100, 5).tolist() == [0.0, 0.0]
    assert at_scored(points, 100, 5_000).tolist() == [1.0, 0.0]
    assert at_scored(points[1:], 100, 5).tolist() == [1.0, 0.0]
