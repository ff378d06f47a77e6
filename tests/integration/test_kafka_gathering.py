"""How long the broker may gather records, by how fast they come; nothing of it changes what is read."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from kafka import TopicPartition

from schemas.config import Config
from streamer.kafka_clients import fetch_when, longest_fetch_wait_ms, open_consumer
from streamer.sources.kafka import KafkaSource
from streamer.sources.kafka_gathering import Gathering
from tests.kafka.records import append, items, produce, read_to_end, until

if TYPE_CHECKING:
    from kafka import KafkaConsumer

    from schemas.config import KafkaConfig
    from streamer.sources.base import Partition
    from tests.conftest import FreshTopics
    from tests.kafka.records import Row

pytestmark = pytest.mark.kafka


def asks_for(consumer: KafkaConsumer) -> tuple[int, int]:
    """Least bytes and longest wait in the fetch that the consumer would send now."""
    made: dict[int, tuple[object, dict[TopicPartition, int]]] = consumer._fetcher._create_fetch_requests()
    ((request, _),) = made.values()
    return request.min_bytes, request.max_wait_ms  # type: ignore[attr-defined]


def test_waits_only_while_records_come_fast(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    now_s = 100.0
    with closing(consumer_at_start(config)) as consumer:
        idle = (1, longest_fetch_wait_ms(config))
        gathering = Gathering(consumer, config, lambda: now_s)
        assert asks_for(consumer) == idle

        for after_s, records, active in (
            (0.1, 50, False),  # 500 a second
            (0.02, 50, True),  # 2,500 a second
            (0.02, 0, True),  # a poll that brought none says nothing yet
            (0.02, 200, True),
            (0.3, 0, False),  # now it does
            (0.001, 1, False),
            (0.01, 100, True),
            (0.1, 2, False),  # a record that comes alone
        ):
            now_s += after_s
            gathering.note(records)
            assert gathering.active is active
            least, wait_ms = asks_for(consumer)
            assert (wait_ms == config.gather_ms and least > 1) if active else (least, wait_ms) == idle


def test_never_waits_where_that_is_not_wanted(fresh_topics: FreshTopics) -> None:
    config = fresh_topics().model_copy(update={"gather_ms": 0})
    with closing(consumer_at_start(config)) as consumer:
        gathering = Gathering(consumer, config)
        gathering.note(1_000_000)
        assert not gathering.active
        assert asks_for(consumer) == (1, longest_fetch_wait_ms(config))


def test_reads_the_same_while_the_broker_gathers(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(partitions=2)
    rows = [(n % 2, b"k", b"%d" % n) for n in range(5_000)]
    got: dict[Partition, list[Row]] = {}
    with closing(KafkaSource(Config(kafka=config))) as source:
        source.seek({})
        fetch_when(source._consumer, min_bytes=1 << 18, wait_ms=100)
        for start in range(0, 5_000, 500):
            produce(config, config.items_topic, rows[start : start + 500])

            def whole(wanted: int = (start + 500) // 2) -> bool:
                for records in source.poll(1_000, 0.05):
                    append(got, records)
                return all(len(got.get(items(config, number), [])) == wanted for number in (0, 1))

            until(whole, f"the records up to {start + 500}")
    with closing(KafkaSource(Config(kafka=config))) as source:
        assert got == read_to_end(source)


def consumer_at_start(config: KafkaConfig) -> KafkaConsumer:
    """A consumer of the first partition of the items, ready to fetch."""
    consumer, key = open_consumer(config), TopicPartition(config.items_topic, 0)
    consumer.assign([key])
    consumer.seek(key, 0)
    consumer.end_offsets([key])  # knows the partition's leader then
    return consumer
