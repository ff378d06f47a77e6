"""Requests of the past, on a log small enough to count by hand."""

from __future__ import annotations

import numpy as np

from streamer.evaluation.requests import build_requests
from tests.evaluation_logs import log_of

EVENTS = [(0, 0, 1), (0, 1, 2), (1, 0, 3), (0, 0, 4), (0, 2, 10), (0, 3, 10), (1, 0, 11), (1, 4, 12), (2, 1, 13)]
LOG = log_of(EVENTS, [0, 0, 5, 10, 12])


def test_requests_are_first_meetings_of_users_with_a_history():
    requests = build_requests(LOG, 10)
    found = list(zip(requests.user.tolist(), requests.target.tolist(), requests.time.tolist(), strict=True))
    assert found == [(0, 2, 10), (0, 3, 10), (1, 4, 12)]
    assert requests.eligible == 3


def test_triggers_are_the_latest_distinct_items_strictly_before_the_moment():
    triggers = build_requests(LOG, 10).triggers
    assert triggers[0].tolist() == [0, 1, -1, -1, -1]
    assert triggers[1].tolist() == [0, 1, -1, -1, -1]  # not item 2, which came at the very same moment
    assert triggers[2].tolist() == [0, -1, -1, -1, -1]


def test_at_most_five_triggers_are_kept_but_all_seen_items():
    log = log_of([(0, i, i) for i in range(9)], [0] * 9)
    requests = build_requests(log, 8)
    assert requests.triggers.tolist() == [[7, 6, 5, 4, 3]]
    assert sorted(requests.seen[0].tolist()) == list(range(8))


def test_the_span_ends_before_its_end_and_a_sample_is_seeded():
    assert len(build_requests(LOG, 10, 12)) == 2
    one, two = (build_requests(LOG, 10, most=2, seed=5) for _ in range(2))
    assert len(one) == 2
    assert one.eligible == 3
    assert np.array_equal(one.target, two.target)
