"""Kafka clients built from :class:`schemas.config.KafkaConfig`, and Kafka's errors told in the house's words.

Nothing here creates a topic on the way: a misspelt name must fail, not become an empty topic.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.cluster import collect_hosts
from kafka.errors import KafkaError, KafkaTimeoutError, UnknownError, for_code
from kafka.net.compat import KafkaNetClient

from schemas.config import KafkaConfig
from schemas.errors import BrokerAwayError, BrokerError, ConfigError
from streamer.kafka_connections import DIRECTLY, REFUSALS, UntrustedError, make_client
from streamer.kafka_security import credential_keys, security_options, who

log = structlog.get_logger(__name__)

T = TypeVar("T")

_LONGEST_FETCH_WAIT_MS: Final = 250
_RECONNECT_AT_MOST_MS: Final = 1_000  # a restarted broker is found again within about a second
METADATA_AGE_MS: Final = 10_000  # how long a topic that was deleted and created anew may pass for the old one
_ASK_AGAIN_S: Final = 0.1
_SPLIT_S: Final = 0.005  # how long it takes about to split a batch
_UNKNOWN_TOPIC: Final = 3  # error code UNKNOWN_TOPIC_OR_PARTITION


def open_consumer(config: KafkaConfig, *, group_id: str | None = None) -> KafkaConsumer:
    """A consumer of raw bytes without subscription: assign, seek and poll it.

    Only whole transactions are read, checksums are verified, offsets are neither reset nor committed unasked.

    Args:
        config: which broker, and how to talk to it.
        group_id: needed to commit or to look up committed offsets. A consumer that has one can't read while the
            group's coordinator is unavailable, so readers go without.

    Raises:
        BrokerError: if no broker answers within ``connect_timeout_s``, or it refuses us.
    """
    return _open(
        KafkaConsumer,
        config,
        group_id=group_id,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        check_crcs=True,
        fetch_max_bytes=config.fetch_max_bytes,
        max_partition_fetch_bytes=max(1 << 16, config.fetch_max_bytes // 4),
        metadata_max_age_ms=METADATA_AGE_MS,
        fetch_max_wait_ms=longest_fetch_wait_ms(config),
    )


def longest_fetch_wait_ms(config: KafkaConfig) -> int:
    """How long the broker may hold a fetch when there is nothing to read."""
    return min(_LONGEST_FETCH_WAIT_MS, int(config.request_timeout_s * 500))


def fetch_when(consumer: KafkaConsumer, *, min_bytes: int, wait_ms: int) -> None:
    """From the next fetch on the broker answers once it has ``min_bytes``, or after ``wait_ms``."""
    settings = consumer._fetcher.config  # noqa: SLF001  # read anew for each fetch, but there is no public way
    settings["fetch_min_bytes"], settings["fetch_max_wait_ms"] = min_bytes, wait_ms


def open_producer(config: KafkaConfig, **options: Any) -> KafkaProducer:
    """An idempotent producer with acks=all; ``options`` are kafka-python's and tune batching.

    Raises:
        BrokerError: if no broker answers within ``connect_timeout_s``, or it refuses us.
    """
    request_ms = int(config.request_timeout_s * 1000)
    settings: dict[str, Any] = {
        "acks": "all",
        "enable_idempotence": True,
        "delivery_timeout_ms": 2 * request_ms + int(options.get("linger_ms", 0)),
        "max_block_ms": request_ms,
    }
    return _open(KafkaProducer, config, **settings | options)


def flush(producer: KafkaProducer, timeout_s: float) -> None:
    """Wait until the broker has taken or refused everything sent.

    kafka-python's own takes a batch that is being split, as it is larger than the topic takes, for one never answered.

    Raises:
        KafkaError: if the broker did neither in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            producer.flush(max(0.0, deadline - time.monotonic()))
        except UnknownError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_SPLIT_S)
        else:
            return


def close_producer(producer: KafkaProducer, timeout_s: float) -> None:
    """Close it within about twice ``timeout_s``, broker or none; what is not confirmed by then is lost."""
    try:
        producer.close(timeout=timeout_s)
    except KafkaTimeoutError:  # of the flush that comes first; kafka-python then leaves thread and sockets running
        log.warning("kafka_unconfirmed_records_dropped")
        producer._sender.force_close()  # noqa: SLF001  # there is no public way
        producer._sender.join(timeout_s)  # noqa: SLF001


def open_admin(config: KafkaConfig) -> KafkaAdminClient:
    """An admin client.

    Raises:
        BrokerError: if no broker answers within ``connect_timeout_s``, or it refuses us.
    """
    return _open(KafkaAdminClient, config)


def is_connected(client: KafkaConsumer) -> bool:
    """Whether the client has a live connection to a broker at the moment."""
    net: KafkaNetClient = client._client  # noqa: SLF001  # kafka-python does not say it any other way
    return any(net.connected(broker.node_id) for broker in net.cluster.brokers())


def with_leader(client: KafkaConsumer, keys: Iterable[TopicPartition]) -> list[TopicPartition]:
    """Those of the partitions whose leader is known and connected at the moment."""
    net: KafkaNetClient = client._client  # noqa: SLF001
    found = []
    for key in keys:
        leader = net.cluster.leader_for_partition(key)
        if leader in {None, -1}:
            continue
        if net.connected(leader):
            found.append(key)
        else:
            net._manager.call_soon(net.maybe_connect, leader)  # noqa: SLF001
    return found


def topic_id(client: KafkaConsumer, topic: str) -> UUID | None:
    """What tells a topic from an earlier one of the same name; None if the broker does not say, or it is away."""
    cluster = client._client.cluster  # noqa: SLF001
    found: UUID | None = cluster.topic_id(topic) if cluster.partitions_for_topic(topic) else None
    return found


@contextmanager
def broker_errors(config: KafkaConfig, doing: str) -> Iterator[None]:
    """Turn kafka-python's errors into :class:`BrokerError`; ``doing`` completes "while ..."."""
    try:
        yield
    except KafkaError as error:
        raise BrokerError(f"Kafka at {config.bootstrap_servers}: {error} while {doing}") from error


def asked(config: KafkaConfig, doing: str, ask: Callable[[], T], timeout_s: float | None = None) -> T:
    """The answer to a question, asked again for ``timeout_s`` (``request_timeout_s``) if the broker is not ready.

    A fresh broker has no group coordinator, and a restarted one no leaders, for a moment.

    Raises:
        BrokerAwayError: if it does not answer in time.
        BrokerError: if it refuses.
    """
    deadline = time.monotonic() + (config.request_timeout_s if timeout_s is None else timeout_s)
    with broker_errors(config, doing):
        while True:
            try:
                return ask()
            except KafkaError as error:
                if not error.retriable:
                    raise
                if time.monotonic() > deadline:
                    raise BrokerAwayError(f"Kafka at {config.bootstrap_servers}: {error} while {doing}") from error
            time.sleep(_ASK_AGAIN_S)


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What the broker says of a topic; ``id`` is None if it is too old to say."""

    name: str
    partitions: int
    id: UUID | None


def topic_facts(admin: KafkaAdminClient, config: KafkaConfig, topics: Sequence[str]) -> list[TopicFacts]:
    """Number of partitions and id of each topic, in the order given.

    Raises:
        BrokerError: if a topic is missing (the message says how to create it) or the broker does not answer.
    """
    doing = f"asking for the topics {', '.join(topics)}"
    described = {topic["name"]: topic for topic in asked(config, doing, lambda: admin.describe_topics(list(topics)))}
    facts: list[TopicFacts] = []
    for name in topics:
        code = described[name]["error_code"] if name in described else _UNKNOWN_TOPIC
        if code == _UNKNOWN_TOPIC:
            raise BrokerError(
                f"Kafka at {config.bootstrap_servers} has no topic {name!r}, or hides it from us; create it, for "
                f"example kafka-topics.sh --bootstrap-server {config.bootstrap_servers} --create --topic {name} "
                "--partitions 4 --config retention.ms=-1, or set the topic names under [kafka]"
            )
        if code:
            raise BrokerError(f"Kafka at {config.bootstrap_servers}: topic {name!r}: {for_code(code).__name__}")
        found = UUID(str(described[name].get("topic_id") or UUID(int=0)))
        facts.append(TopicFacts(name, len(described[name]["partitions"]), found if found.int else None))
    return facts


def partition_counts(admin: KafkaAdminClient, config: KafkaConfig, topics: Sequence[str]) -> dict[str, int]:
    """Number of partitions of each topic; raises as :func:`topic_facts`."""
    return {facts.name: facts.partitions for facts in topic_facts(admin, config, topics)}


def topic_settings(admin: KafkaAdminClient, topic: str, names: Sequence[str]) -> dict[str, str]:
    """The topic's settings in effect, by name; empty if we may not look at them, as not everybody who writes may."""
    asked_for = ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(names))
    try:
        found = admin.describe_configs([asked_for], config_filter="all")["topic"][topic]
    except KafkaError as error:
        log.warning("topic_settings_unknown", topic=topic, error=str(error))
        return {}
    return {name: str(setting["value"]) for name, setting in found.items()}


def _open(kind: type, config: KafkaConfig, **options: Any) -> Any:
    _hush_kafka_python()
    clients: list[KafkaNetClient] = []

    def remember(**settings: Any) -> KafkaNetClient:
        clients.append(make_client(**settings))
        return clients[-1]

    try:
        return kind(kafka_client=remember, **_connection(config), **options)
    except KafkaError as error:
        failure = error
        for client in clients:  # a constructor that raises leaves its sockets and its network thread behind
            failure = client._manager.failure or error  # noqa: SLF001
            client.close()
        raise _cannot_connect(config, failure) from error


def _hush_kafka_python() -> None:
    """It logs several errors for each of several reconnections a second; our own events tell what they come to.

    A level that somebody has set for the logger ``kafka`` stays.
    """
    logger = logging.getLogger("kafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


def _cannot_connect(config: KafkaConfig, failure: Exception) -> BrokerError:
    where = f"Kafka at {config.bootstrap_servers}"
    if isinstance(failure, UntrustedError):
        return BrokerError(f"{where} is not trusted: {failure}; check kafka.ssl_cafile")
    if isinstance(failure, REFUSALS):
        return BrokerError(f"{where} refused {who(config)}: {failure}; check {credential_keys(config)}")
    return BrokerAwayError(
        f"{where} did not answer within {config.connect_timeout_s:g} s ({failure}); "
        "is the broker running, and are kafka.bootstrap_servers and kafka.security_protocol right?"
    )


def _addresses(config: KafkaConfig) -> list[tuple[str, int]]:
    try:
        found = [(host, port) for host, port, _ in collect_hosts(config.bootstrap_servers, randomize=False)]
    except ValueError:
        found = []
    if not found or not all(host and 0 < port < 65_536 for host, port in found):
        raise ConfigError(f"kafka.bootstrap_servers is {config.bootstrap_servers!r}; give host:port, comma separated")
    return found


def _connection(config: KafkaConfig) -> dict[str, Any]:
    request_ms = int(config.request_timeout_s * 1000)
    return {
        "bootstrap_servers": [
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in _addresses(config)
        ],
        "client_id": config.client_id,
        "bootstrap_timeout_ms": int(config.connect_timeout_s * 1000),
        "request_timeout_ms": request_ms,
        "connections_max_idle_ms": max(540_000, 2 * request_ms),
        "reconnect_backoff_max_ms": _RECONNECT_AT_MOST_MS,
        "proxy_url": DIRECTLY,
    } | security_options(config)
