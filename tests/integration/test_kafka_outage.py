"""A broker that is away, goes away and comes back."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from schemas.config import Config, KafkaConfig
from schemas.dead_letters import DeadLetter, Reason
from schemas.errors import BrokerError, ConfigError
from streamer.dead_letters import TopicDeadLetters, read_topic
from streamer.kafka_clients import open_admin, open_consumer, open_producer
from streamer.membership import Committer
from streamer.sources.kafka import KafkaSource
from streamer.sources.kafka_partitions import read_lag
from tests.conftest import kafka_config
from tests.kafka.broker import create_topics
from tests.kafka.records import append, items, produce, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamer.sources.base import Partition
    from tests.kafka.broker import Broker
    from tests.kafka.records import Row


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed_address() -> str:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "connect",
    [
        lambda kafka: KafkaSource(Config(kafka=kafka)),
        lambda kafka: read_lag(Config(kafka=kafka)),
        TopicDeadLetters,
        lambda kafka: list(read_topic(kafka)),
        open_consumer,
        open_producer,
        open_admin,
    ],
)
def test_no_broker_is_told_with_the_address_and_the_cause(
    closed_address: str, connect: Callable[[KafkaConfig], object]
) -> None:
    config = KafkaConfig(bootstrap_servers=closed_address, connect_timeout_s=1)
    with pytest.raises(BrokerError, match=rf"Kafka at {closed_address} did not answer within 1 s .*REFUSED"):
        connect(config)


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL"])
def test_a_port_that_accepts_and_stays_silent_is_given_up(silent_address: str, protocol: str) -> None:
    config = KafkaConfig(bootstrap_servers=silent_address, connect_timeout_s=0.5, security_protocol=protocol)
    with pytest.raises(BrokerError, match=rf"Kafka at {silent_address} did not answer within 0.5 s"):
        open_consumer(config)


@pytest.mark.parametrize("servers", ["", "host:none", "host:70000", ":9092", "a:1,,b:2"])
def test_addresses_that_are_none_are_configuration_errors(servers: str) -> None:
    with pytest.raises(ConfigError, match="bootstrap_servers"):
        open_consumer(KafkaConfig(bootstrap_servers=servers))


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_reading_goes_on_without_loss_when_the_broker_returns(own_broker: Broker, how: str) -> None:
    config = kafka_config(own_broker.bootstrap)
    create_topics(own_broker.bootstrap, {config.items_topic: 2, config.engagements_topic: 1})
    rows = [(n % 2, b"k", b"%d" % n) for n in range(2_000)]
    produce(config, config.items_topic, rows[:1_000])
    got: dict[Partition, list[Row]] = {}
    with closing(KafkaSource(Config(kafka=config))) as source, closing(Committer(config)) as committer:

        def read_until(count: int) -> None:
            def step() -> bool:
                for records in source.poll(50, 0.2):
                    append(got, records)
                return sum(map(len, got.values())) >= count

            until(step, f"{count} records")

        read_until(100)
        with capture_logs() as logs:
            getattr(own_broker, how)()
            read_until(1_000)  # what was fetched before; a fetch cut short by the broker's end comes after its return
            for _ in range(3):
                committer.commit({items(config): 1})  # neither waits nor raises
                assert source.poll(50, 0.3) == []
                assert sum(source.end_offsets().values()) == 1_000
            own_broker.start()
            produce(config, config.items_topic, rows[1_000:])
            read_until(2_000)
    assert [log["event"] for log in logs if log["event"] != "kafka_commit_failed"] == ["kafka_is_away", "kafka_is_back"]
    assert len([log for log in logs if log["event"] == "kafka_commit_failed"]) <= 1
    for number in range(2):
        expected = [(key, value) for partition, key, value in rows if partition == number]
        assert got[items(config, number)] == [(at, *row) for at, row in enumerate(expected)]


@pytest.mark.kafka
@pytest.mark.slow
def test_without_an_answer_questions_end_in_time_and_close_does_not_hang(own_broker: Broker) -> None:
    config = kafka_config(own_broker.bootstrap).model_copy(update={"request_timeout_s": 2.0, "connect_timeout_s": 5.0})
    create_topics(
        own_broker.bootstrap, {config.items_topic: 1, config.engagements_topic: 1, config.dead_letters_topic: 1}
    )
    sink = TopicDeadLetters(config)
    source = KafkaSource(Config(kafka=config))
    source.seek({})
    committer = Committer(config)
    committer.commit({items(config): 0})
    ends = source.end_offsets()
    never_asked = KafkaSource(Config(kafka=config))
    own_broker.freeze()
    began = time.monotonic()
    assert source.poll(10, 0.2) == []
    assert source.end_offsets() == ends
    with pytest.raises(BrokerError, match="end offsets"):
        never_asked.end_offsets()
    with pytest.raises(BrokerError, match="beginning offsets"):
        never_asked.poll(1, 0.1)
    never_asked.close()
    with pytest.raises(BrokerError, match="dead letters"):
        sink.write([letter(0)])
    committer.commit({items(config): 1})
    committer.close()
    source.close()
    sink.close()
    assert time.monotonic() - began < 180  # a deadline, not a measurement: before it was set some of these never ended
    own_broker.thaw()


@pytest.mark.kafka
@pytest.mark.slow
def test_dead_letters_are_confirmed_by_the_broker_or_refused(own_broker: Broker) -> None:
    config = kafka_config(own_broker.bootstrap).model_copy(update={"request_timeout_s": 3.0})
    create_topics(own_broker.bootstrap, {config.dead_letters_topic: 1})
    with closing(TopicDeadLetters(config)) as sink:
        sink.write([letter(0)])
        own_broker.kill()
        with pytest.raises(BrokerError, match="dead letter"):
            sink.write([letter(1)])
        own_broker.start()
    with closing(TopicDeadLetters(config)) as sink:
        sink.write([letter(1)])
    assert {found.offset for found in read_topic(config)} == {0, 1}


def letter(offset: int) -> DeadLetter:
    return DeadLetter(
        reason=Reason.INVALID, detail="d", topic="t", partition=0, offset=offset, failed_at_ms=1, value=b"v"
    )
