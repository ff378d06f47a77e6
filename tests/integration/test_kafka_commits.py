"""Positions that lag tools see: committed late, again, or not at all, and never read back."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from schemas.config import Config
from streamer.membership import AllShards, Committer
from streamer.sources.kafka import KafkaSource
from streamer.sources.kafka_partitions import read_lag
from tests.kafka.members import Notes
from tests.kafka.records import items, produce, read_to_end, until

if TYPE_CHECKING:
    from tests.conftest import FreshTopics

pytestmark = pytest.mark.kafka


def test_commits_show_in_the_lag_and_do_not_move_the_start(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(partitions=2)
    produce(config, config.items_topic, [(n % 2, b"k", b"v") for n in range(20)])
    before = read_lag(Config(kafka=config))
    assert [lag.committed for lag in before] == [None] * 4
    assert [lag.lag for lag in before] == [0, 0, 10, 10]
    with closing(AllShards(Notes(), [0, 1], Committer(config))) as membership:
        membership.turn(0)
        membership.commit({items(config, 0): 4})
        until(lambda: membership.turn(0.05) is None and read_lag(Config(kafka=config))[2].committed == 4, "the commit")
        membership.commit({items(config, 0): 7})
        membership.commit({items(config, 1): 10})
    after = read_lag(Config(kafka=config))  # close waits for the last commit
    assert [(lag.committed, lag.lag, lag.end) for lag in after[2:]] == [(7, 3, 10), (10, 0, 10)]
    with closing(KafkaSource(Config(kafka=config))) as source:
        assert read_to_end(source)[items(config, 0)][0] == (0, b"k", b"v")
