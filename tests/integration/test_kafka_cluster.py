"""A cluster that loses a node: what has a leader goes on, the rest waits, and nobody loses a record or a shard."""

from __future__ import annotations

import random
import time
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import kafka.net.manager
import pytest
from kafka.errors import KafkaTimeoutError

from schemas.config import Config
from schemas.errors import BrokerError
from streamer.sources.kafka import KafkaSource
from streamer.sources.kafka_partitions import read_lag
from tests.conftest import kafka_config
from tests.kafka.members import Member, overlaps
from tests.kafka.records import append, items, produce, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.config import KafkaConfig
    from streamer.sources.base import Partition
    from tests.kafka.cluster import Cluster
    from tests.kafka.records import Row

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[Cluster]:
    from tests.conftest import give_up
    from tests.kafka.cluster import Cluster
    from tests.kafka.jars import NoBrokerError

    try:
        cluster = Cluster()
        with cluster:
            yield cluster
    except NoBrokerError as error:
        give_up(str(error))


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """All nodes up before and after."""
    yield running_cluster
    running_cluster.heal()


@pytest.fixture
def unlucky(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever kafka-python draws lots, it draws the broker that is frozen or dead, if that is among them."""

    def fate(node: Any) -> bool:
        port = getattr(node, "port", None) or int(cluster.brokers[node].bootstrap.rpartition(":")[2])
        return any(
            port == int(broker.bootstrap.rpartition(":")[2])
            for broker in cluster.brokers.values()
            if broker.frozen or not broker.running
        )

    lots = SimpleNamespace(
        choice=lambda nodes: max(nodes, key=fate),
        shuffle=lambda nodes: nodes.sort(key=fate, reverse=True),
        uniform=random.uniform,
    )
    monkeypatch.setattr(kafka.net.manager, "random", lots)


def test_a_partition_without_leader_waits_while_the_other_goes_on(cluster: Cluster) -> None:
    config = topics(cluster, {0: [2], 1: [3]})
    rows = [(n % 2, b"k", b"%d" % n) for n in range(100)]
    produce(config, config.items_topic, rows[:50])
    shards = [Reading(config, 0), Reading(config, 1)]
    both = Reading(config, None)
    for reading in (*shards, both):
        until(reading.reaches({items(config, n): 25 for n in reading.numbers}), "the first records")
    cluster.brokers[3].kill()
    produce(config, config.items_topic, [row for row in rows[50:] if row[0] == 0])
    for reading in (shards[0], both):
        until(reading.reaches({items(config, 0): 50}), "the partition with a leader")
    for reading in (shards[1], both):
        began = time.monotonic()
        for _ in range(20):
            assert reading.step() == 0
            assert reading.source.end_offsets()[items(config, 1)] == 25
        assert time.monotonic() - began < 60  # a deadline: asking for what nobody can tell would take 2 s each time
    impatient = Config(kafka=config.model_copy(update={"request_timeout_s": 1.0}))
    with (
        closing(KafkaSource(impatient, 1)) as source,
        pytest.raises(BrokerError, match=rf"no leader can be reached of .*{config.items_topic}-1"),
    ):
        source.seek({})
    cluster.brokers[3].start()
    produce(config, config.items_topic, [row for row in rows[50:] if row[0] == 1])
    for reading in (*shards, both):
        until(reading.reaches({items(config, n): 50 for n in reading.numbers}), "all records")
        for number in reading.numbers:
            expected = [(key, value) for partition, key, value in rows if partition == number]
            assert reading.got[items(config, number)] == [(at, *row) for at, row in enumerate(expected)]
        reading.source.close()


@pytest.mark.usefixtures("unlucky")
@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_reading_follows_the_leader_to_another_broker(cluster: Cluster, how: str) -> None:
    config = topics(cluster, {0: [2, 3]})
    produce(config, config.items_topic, [(0, b"k", b"%d" % n) for n in range(10)])
    reading = Reading(config, 0)
    until(reading.reaches({items(config): 10}), "the first records")
    getattr(cluster.brokers[2], how)()
    until(lambda: produced(config, [(0, b"k", b"%d" % n) for n in range(10, 20)]), "the new leader to take records")
    until(reading.reaches({items(config): 20}), "what was written at the new leader")
    reading.source.close()
    assert reading.got[items(config)] == [(n, b"k", b"%d" % n) for n in range(20)]


def test_a_broker_that_freezes_for_some_seconds_delays_and_loses_nothing(cluster: Cluster) -> None:
    config = topics(cluster, {0: [2]})
    produce(config, config.items_topic, [(0, b"k", b"%d" % n) for n in range(10)])
    reading = Reading(config, 0)
    until(reading.reaches({items(config): 10}), "the first records")
    cluster.brokers[2].freeze()
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        assert reading.step() == 0
        reading.source.end_offsets()
    cluster.brokers[2].thaw()
    produce(config, config.items_topic, [(0, b"k", b"%d" % n) for n in range(10, 20)])
    until(reading.reaches({items(config): 20}), "the rest")
    reading.source.close()
    assert reading.got[items(config)] == [(n, b"k", b"%d" % n) for n in range(20)]


@pytest.mark.usefixtures("unlucky")
@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_coordinator_that_moves_keeps_every_member_and_its_shards(cluster: Cluster, how: str) -> None:
    config = topics(cluster, {0: [2, 3], 1: [3, 2]})
    # With this much bad luck a dozen requests may go to the one that is away: they must fit into a session.
    hasty = config.model_copy(update={"session_timeout_s": 60.0, "request_timeout_s": 2.0})
    one, two = Member(hasty, "one"), Member(hasty, "two")
    try:
        until(lambda: pause() and settled(one, two), "a shard for each")
        told = [list(member.notes.told) for member in (one, two)]
        getattr(cluster.brokers[coordinating(one)], how)()
        for number in range(5):
            one.group.commit({items(config, shard): 0 for shard in one.notes.now()})
            assert pause(), number
        confirmed = [member.group._coordinator.confirmed_at for member in (one, two)]
        until(
            lambda: (
                pause()
                and all(m.group._coordinator.confirmed_at > at for m, at in zip((one, two), confirmed, strict=True))
            ),
            "heartbeats at the new coordinator",
        )
        mine = next(iter(one.notes.now()))
        until(lambda: pause() and committed(config)[items(config, mine)] == 0, "the commit at the new coordinator")
        for member, before in zip((one, two), told, strict=True):
            assert member.alive()
            assert member.notes.told == before
            assert all(member.group.holds(shard) for shard in member.notes.now())
        assert overlaps([one.notes, two.notes]) == []
    finally:
        one.leave()
        two.leave()


class Reading:
    """A source and all it gave."""

    def __init__(self, config: KafkaConfig, shard: int | None) -> None:
        self.source = KafkaSource(Config(kafka=config), shard)
        self.got: dict[Partition, list[Row]] = {}
        self.numbers = sorted({partition.number for partition in self.source.partitions()})

    def step(self) -> int:
        polled = self.source.poll(100, 0.1)
        for records in polled:
            append(self.got, records)
        return len(polled)

    def reaches(self, counts: dict[Partition, int]):
        def reached() -> bool:
            self.step()
            return all(len(self.got.get(partition, ())) >= count for partition, count in counts.items())

        return reached


def topics(cluster: Cluster, replicas: dict[int, list[int]]) -> KafkaConfig:
    """Both topics placed alike."""
    config = kafka_config(cluster.bootstrap).model_copy(update={"request_timeout_s": 6.0})
    for topic in (config.items_topic, config.engagements_topic):
        cluster.create_topic(topic, replicas)
    return config


def committed(config: KafkaConfig) -> dict[Partition, int | None]:
    return {lag.partition: lag.committed for lag in read_lag(Config(kafka=config))}


def produced(config: KafkaConfig, rows: list[Row]) -> bool:
    """Whether they were; a fresh producer asks whom it meets, and may have met the frozen one."""
    try:
        produce(config, config.items_topic, rows)
    except KafkaTimeoutError:  # before anything was sent
        return False
    return True


def settled(*members: Member) -> bool:
    """Whether each has a shard, and none waits for others to join, which a frozen coordinator answers late."""
    groups = [member.group._coordinator for member in members]
    return (
        all(len(member.notes.now()) == 1 for member in members)
        and all(group.stable() and not group.need_rejoin() for group in groups)
        and len({group.generation_id for group in groups}) == 1
    )


def coordinating(member: Member) -> int:
    """The broker that coordinates its group; kafka-python calls it "coordinator-2"."""
    return int(str(member.group._coordinator.coordinator_id).removeprefix("coordinator-"))


def pause() -> bool:
    time.sleep(0.1)
    return True
