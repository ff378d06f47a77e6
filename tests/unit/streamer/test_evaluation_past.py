"""The past at a moment: pool, counts, news."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.evaluation.past import HOUR_MS, Past
from streamer.evaluation.timeline import timeline_of
from tests.evaluation_logs import log_of, random_log


def past_of(log, pool_s=None, half_lives_s=(60, 600)):
    return Past(timeline_of(log), half_lives_s, pool_s)


def test_what_happens_at_the_moment_has_not_happened():
    past = past_of(log_of([(0, 0, 5), (0, 1, 9)], [4, 9]))
    news = past.advance(9)
    assert news.arrived.tolist() == [0]
    assert news.engaged.tolist() == [0]
    assert past.live.tolist() == [True, False]
    assert past.contents[1] is None
    news = past.advance(10)
    assert (news.arrived.tolist(), news.engaged.tolist(), news.offset) == ([1], [1], 1)


def test_time_does_not_go_back():
    past = past_of(log_of([(0, 0, 5)], [4]))
    past.advance(9)
    with pytest.raises(ValueError, match="go back"):
        past.advance(8)


def test_an_idle_item_leaves_the_pool_and_comes_back_when_engaged():
    past = past_of(log_of([(0, 0, 1_000), (0, 0, 20_000)], [0, 500]), pool_s=5)
    assert past.advance(2_000).left.tolist() == []
    news = past.advance(8_000)
    assert sorted(news.left.tolist()) == [0, 1]
    assert not past.live.any()
    news = past.advance(20_001)
    assert (news.arrived.tolist(), news.arrived_at.tolist()) == ([0], [20_000])
    assert past.live.tolist() == [True, False]
    assert past.created_at[0] == 20_000


def test_an_item_that_came_and_left_between_two_moments_never_arrives():
    past = past_of(log_of([(0, 0, 1_000)], [0, 500]), pool_s=5)
    news = past.advance(60_000)
    assert news.arrived.tolist() == []
    assert not past.live.any()


def test_counts_equal_those_made_at_once():
    log = random_log()
    past = past_of(log)
    for moment in (0, 40_000, 40_001, 700_000, 1_999_000):
        past.advance(moment)
    seen = log.time < 1_999_000
    age_s = (1_999_000 - log.time[seen]) / 1_000
    for window, half_life in enumerate((60, 600)):
        expected = np.bincount(log.item[seen], 2.0 ** (-age_s / half_life), len(log.item_ids))
        np.testing.assert_allclose(past.decayed()[:, window], expected, rtol=1e-9)
    assert np.array_equal(past.total, np.bincount(log.item[seen], minlength=len(log.item_ids)))
    lately = seen & (log.time >= 1_999_000 - HOUR_MS)
    assert np.array_equal(past.hour, np.bincount(log.item[lately], minlength=len(log.item_ids)))


def test_the_last_hour_forgets():
    past = past_of(log_of([(0, 0, 5), (0, 0, HOUR_MS)], [4]))
    past.advance(10)
    assert past.hour[0] == 1
    past.advance(HOUR_MS + 6)
    assert past.hour[0] == 1
    assert past.total[0] == 2
