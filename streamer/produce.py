"""An event log into the two Kafka topics, in event time, as the systems that make the events would have sent them.

Both streams are merged by ``occurred_at``: a consumer that runs at the same time meets items and engagements in their
true order. The lines themselves are not looked into any further and arrive as they are, so that what is wrong with one
is found where all records are judged, by the daemon.
"""

from __future__ import annotations

import gc
import heapq
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
import structlog
from kafka.codec import has_lz4, has_zstd
from kafka.errors import MessageSizeTooLargeError
from kafka.partitioner.default import murmur2

from schemas.errors import BrokerError, ConfigError, UsageError
from schemas.events import parse_time_ms
from streamer.eventlog_format import discover
from streamer.kafka_clients import (
    broker_errors,
    close_producer,
    flush,
    open_admin,
    open_producer,
    topic_settings,
)
from streamer.sources.base import Stream
from streamer.sources.eventlog_lines import LineReader
from streamer.sources.kafka_partitions import partitions_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kafka import KafkaAdminClient, KafkaProducer
    from kafka.errors import KafkaError

    from schemas.config import Config, KafkaConfig
    from streamer.eventlog_format import LogFile

log = structlog.get_logger(__name__)

_MAX_LINE_BYTES: Final = 64 << 20
_LINES_AT_ONCE: Final = 2_048
_BATCH_BYTES: Final = 1 << 17
_LINGER_MS: Final = 5
# kafka-python 3 has no buffer.memory: without a limit of our own it would take in the whole log as fast as we read it.
_UNCONFIRMED_RECORDS: Final = 8_192
_UNCONFIRMED_BYTES: Final = 32 << 20
_UNCONFIRMED_S: Final = 1.0
_CLOSE_S: Final = 2.0
_CACHED_KEYS: Final = 1 << 18


@dataclass(slots=True)
class ProduceCounts:
    """What was produced and confirmed.

    Attributes:
        items, engagements: records.
        without_key: of both, lines without a usable ``item_id``; the daemon will set them aside.
        seconds: how long it took.
    """

    items: int = 0
    engagements: int = 0
    without_key: int = 0
    seconds: float = 0.0


class _Event(NamedTuple):
    """One line, ordered by time, items first among equals, then as in the log; comparing ends before the line."""

    order_ms: int
    is_engagement: bool
    file: int
    number: int
    line: bytes
    key: bytes | None
    time_ms: int


def produce_event_log(
    path: Path, config: Config, *, rate: float | None = None, progress: Callable[[int], None] | None = None
) -> ProduceCounts:
    """Produce every line of the log in directory ``path`` and wait until the broker confirmed all.

    The key is the line's ``item_id``. Both topics use one hash of it, so that an item and its engagements have the same
    partition number. The Kafka timestamp is ``occurred_at``, or now if that is in the future, which brokers refuse.

    Args:
        path: the event log.
        config: names the broker and the topics.
        rate: records per second at most; None for as fast as possible.
        progress: called with the number of records confirmed since its last call.

    Raises:
        UsageError: if there is no event log, or a file of it is damaged.
        ConfigError: if the topics differ in their number of partitions, or would delete the events for their age.
        BrokerError: if the broker does not answer, lacks a topic or does not take a record.
    """
    if rate is not None and rate <= 0:
        raise UsageError(f"rate is {rate}; give a number of records per second above 0, or none at all")
    started = time.monotonic()
    files = discover(path)
    kafka = config.kafka
    admin = open_admin(kafka)
    try:
        partitions = _common_partitions(admin, kafka)
        _refuse_retention(admin, kafka, files)
    finally:
        admin.close()
    producer = open_producer(
        kafka,
        batch_size=_BATCH_BYTES,
        linger_ms=_LINGER_MS,
        max_request_size=_MAX_LINE_BYTES + _BATCH_BYTES,
        compression_type="zstd" if has_zstd() else "lz4" if has_lz4() else None,
    )
    try:
        out = _Output(producer, kafka, files, partitions, progress)
        first = time.monotonic()
        with _rare_collections():
            for sent, event in enumerate(_merged(files)):
                if rate is not None:
                    out.wait_until(first + sent / rate)
                out.send(event)
            out.confirm()
    finally:
        close_producer(producer, _CLOSE_S)
    out.counts.seconds = time.monotonic() - started
    return out.counts


@contextmanager
def _rare_collections() -> Iterator[None]:
    """kafka-python makes a dozen objects a record and keeps them until it is confirmed.

    At its usual thresholds the garbage collector walks them over and over, for half of the time.
    """
    usual = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


class _Output:
    """Sends events and keeps account of those that the broker has not confirmed."""

    def __init__(
        self,
        producer: KafkaProducer,
        config: KafkaConfig,
        files: list[LogFile],
        partitions: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.counts = ProduceCounts()
        self._producer, self._config, self._files, self._partitions = producer, config, files, partitions
        self._progress = progress
        self._topics = (config.items_topic, config.engagements_topic)
        self._unconfirmed: list[tuple[_Event, Any]] = []
        self._bytes = 0
        self._oldest = time.monotonic()
        self._now_ms = int(time.time() * 1000)

    def send(self, event: _Event) -> None:
        key = event.key
        partition = event.number % self._partitions if key is None else _partition_of(key, self._partitions)
        with broker_errors(self._config, "producing"):
            future = self._producer.send(
                self._topics[event.is_engagement],
                event.line,
                key,
                partition=partition,
                timestamp_ms=min(event.time_ms, self._now_ms),
            )
        self._unconfirmed.append((event, future))
        self._bytes += len(event.line)
        if len(self._unconfirmed) >= _UNCONFIRMED_RECORDS or self._bytes >= _UNCONFIRMED_BYTES:
            self.confirm()

    def wait_until(self, moment: float) -> None:
        """Sleep until ``moment`` of the monotonic clock; not for less than a tick, or high rates would pay for it."""
        now = time.monotonic()
        if now - self._oldest > _UNCONFIRMED_S:
            self.confirm()
        if moment - now > 0.001:
            time.sleep(moment - now)

    def confirm(self) -> None:
        """Wait until the broker has all, and count it."""
        with broker_errors(self._config, f"waiting for {len(self._unconfirmed)} records to be confirmed"):
            flush(self._producer, 2 * self._config.request_timeout_s)
        failed = [(event, future.exception) for event, future in self._unconfirmed if future.failed()]
        if failed:
            raise self._refused(failed)
        for event, _ in self._unconfirmed:
            self.counts.engagements += event.is_engagement
            self.counts.items += not event.is_engagement
            self.counts.without_key += event.key is None
        if self._progress is not None and self._unconfirmed:
            self._progress(len(self._unconfirmed))
        self._unconfirmed.clear()
        self._bytes = 0
        self._oldest = time.monotonic()
        self._now_ms = int(time.time() * 1000)

    def _refused(self, failed: list[tuple[_Event, KafkaError]]) -> BrokerError:
        # One refusal ends an idempotent producer, and everything it still holds fails with the same error.
        too_large = isinstance(failed[0][1], MessageSizeTooLargeError)
        event, error = max(failed, key=lambda each: len(each[0].line)) if too_large else failed[0]
        return BrokerError(
            f"Kafka at {self._config.bootstrap_servers} did not take line {event.number + 1} of "
            f"{self._files[event.file].path} ({len(event.line)} bytes) into topic "
            f"{self._topics[event.is_engagement]!r}: {error}; records before it are produced already"
        )


def _merged(files: list[LogFile]) -> Iterator[_Event]:
    return heapq.merge(*(_events(index, file) for index, file in enumerate(files)))


def _events(index: int, file: LogFile) -> Iterator[_Event]:
    """The lines of one file; one whose time goes back, or is none, is merged at the latest time before it."""
    is_engagement = file.partition.stream is Stream.ENGAGEMENTS
    reader = LineReader(file, follow=False, max_line_bytes=_MAX_LINE_BYTES)
    try:
        reader.seek(0)
        latest, number = 0, 0
        now_ms = int(time.time() * 1000)
        while lines := reader.take(_LINES_AT_ONCE):
            for line in lines:
                key, time_ms = _look_at(line)
                if time_ms is None:
                    time_ms = latest
                elif latest < time_ms <= now_ms:  # one wrong date in the future must not hold back the rest of its file
                    latest = time_ms
                yield _Event(latest, is_engagement, index, number, line, key, time_ms)
                number += 1
    finally:
        reader.close()


def _look_at(line: bytes) -> tuple[bytes | None, int | None]:
    """Key and time of a line, each None if it has no usable one."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None, None
    if type(event) is not dict:
        return None, None
    item_id, when = event.get("item_id"), event.get("occurred_at")
    key = item_id.encode() if type(item_id) is str and item_id else None
    try:
        time_ms = parse_time_ms(when)
    except ValueError:
        return key, None
    return key, time_ms if time_ms >= 0 else None


@lru_cache(maxsize=_CACHED_KEYS)
def _partition_of(key: bytes, partitions: int) -> int:
    """What Kafka's own clients choose for a key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def _common_partitions(admin: KafkaAdminClient, config: KafkaConfig) -> int:
    counts = Counter(partition.topic for partition in partitions_of(admin, config))
    if len(set(counts.values())) > 1:
        raise ConfigError(
            "the topics must have equally many partitions, or items and their engagements part ways: "
            + ", ".join(f"{name} has {count}" for name, count in counts.items())
            + "; create one of them anew"
        )
    return counts[config.items_topic]


def _refuse_retention(admin: KafkaAdminClient, config: KafkaConfig, files: list[LogFile]) -> None:
    """Kafka deletes records by their timestamps, which are the events': old ones would be gone within minutes."""
    firsts = [next(_events(index, file), None) for index, file in enumerate(files)]
    oldest = min((event.time_ms for event in firsts if event is not None), default=None)
    if oldest is None:
        return
    age_ms = int(time.time() * 1000) - oldest
    for name in (config.items_topic, config.engagements_topic):
        found = topic_settings(admin, name, ["retention.ms", "cleanup.policy", "message.timestamp.type"])
        retention_ms = int(found.get("retention.ms", -1))
        by_event_time = found.get("message.timestamp.type") == "CreateTime"
        if by_event_time and "delete" in found["cleanup.policy"] and 0 <= retention_ms < age_ms:
            raise ConfigError(
                f"topic {name!r} keeps records for {retention_ms / 86_400_000:g} days by their timestamps, and "
                f"the log's events are up to {age_ms / 86_400_000:.0f} days old: Kafka would delete them within "
                f"minutes. First run kafka-configs.sh --bootstrap-server {config.bootstrap_servers} --alter "
                f"--entity-type topics --entity-name {name} --add-config retention.ms=-1"
            )
