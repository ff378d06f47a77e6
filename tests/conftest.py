"""For all tests: how hard property tests try, a real Kafka broker, and fresh topics on it."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Protocol

import pytest
import structlog
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

from schemas.config import KafkaConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kafka.broker import Broker, GivenBroker


# A little by default, much with HYPOTHESIS_PROFILE=long. Stores are opened in many examples on a machine that others
# use too: how long an example takes says nothing about what is tested.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("short", max_examples=25, **_COMMON)
settings.register_profile("long", max_examples=500, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


class FreshTopics(Protocol):
    """Makes topics that no other test uses; returns the configuration that names them."""

    def __call__(
        self, partitions: int = 1, *, engagement_partitions: int | None = None, **configs: str
    ) -> KafkaConfig: ...


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """Runs the command line in this process, without its logging, which would go on into a closed stream for good."""
    monkeypatch.setattr(structlog, "configure", lambda **_: None)
    return CliRunner()


def give_up(reason: str) -> None:
    if os.environ.get("REQUIRE_KAFKA") == "1":
        pytest.fail(f"REQUIRE_KAFKA=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker | GivenBroker]:
    """The session's broker: the one ``KAFKA_BOOTSTRAP`` names, or our own. Leave it running."""
    from tests.kafka.broker import Broker, given_or_own
    from tests.kafka.jars import NoBrokerError

    try:
        broker = given_or_own()
    except NoBrokerError as error:
        give_up(str(error))
    yield broker
    if isinstance(broker, Broker):
        broker.close()


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """A broker for one test, which may stop, kill, freeze and restart it."""
    from tests.kafka.broker import Broker
    from tests.kafka.jars import NoBrokerError

    try:
        broker = Broker()
    except NoBrokerError as error:
        give_up(str(error))
    with broker:
        yield broker


@pytest.fixture
def fresh_topics(kafka: Broker | GivenBroker) -> Iterator[FreshTopics]:
    """Call it for topics on the session's broker, with unique names, deleted after the test."""
    from streamer.kafka_clients import open_admin
    from tests.kafka.broker import create_topics

    created: list[str] = []

    def make(partitions: int = 1, *, engagement_partitions: int | None = None, **configs: str) -> KafkaConfig:
        config = kafka_config(kafka.bootstrap)
        counts = {
            config.items_topic: partitions,
            config.engagements_topic: partitions if engagement_partitions is None else engagement_partitions,
            config.dead_letters_topic: 1,
        }
        create_topics(kafka.bootstrap, counts, **{"retention_ms": "-1"} | configs)
        created.extend(counts)
        return config

    yield make
    if created:
        admin = open_admin(KafkaConfig(bootstrap_servers=kafka.bootstrap))
        admin.delete_topics(created, raise_errors=False)  # a test may have deleted some
        admin.close()


def kafka_config(bootstrap: str) -> KafkaConfig:
    """Unique topic and group names on a broker; creates nothing."""
    run = uuid.uuid4().hex[:12]
    return KafkaConfig(
        bootstrap_servers=bootstrap,
        items_topic=f"items-{run}",
        engagements_topic=f"engagements-{run}",
        dead_letters_topic=f"deadletters-{run}",
        group_id=f"group-{run}",
        request_timeout_s=20,
    )
