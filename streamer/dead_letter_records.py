"""Dead letters as records of a topic: what they look like there, and reading them."""

from __future__ import annotations

import time
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import structlog
from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import LeaderNotAvailableError
from kafka.protocol.consumer import IsolationLevel
from pydantic import ValidationError

from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerAwayError
from streamer.kafka_clients import asked, broker_errors, open_admin, open_consumer, partition_counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kafka import KafkaConsumer
    from kafka.consumer.fetcher import ConsumerRecord

    from schemas.config import KafkaConfig

log = structlog.get_logger(__name__)

_CUT: Final = " [value cut from"
_OVERHEAD_BYTES: Final = 1_024  # of a record, its batch, and headers other than the detail
_CHUNK_RECORDS: Final = 5_000
_CHUNK_BYTES: Final = 8 << 20
_CLOSE_MS: Final = 2_000
_SLICE_S: Final = 0.25  # of waiting for records: a range may end with markers of transactions, which are no records
_LOOK_AGAIN_S: Final = 0.1


def read_topic(config: KafkaConfig) -> Iterator[DeadLetter]:
    """The letters in ``kafka.dead_letters_topic`` from the oldest kept to the newest at the time of the call.

    They are in order within a partition of the topic. Records that are no dead letters are logged and passed over.

    Raises:
        BrokerError: if the broker does not answer, or the topic is missing.
    """
    topic = config.dead_letters_topic
    admin = open_admin(config)
    try:
        count = partition_counts(admin, config, [topic])[topic]
    finally:
        admin.close()
    with a_consumer(config) as consumer:
        ranges = ranges_of(config, consumer, [TopicPartition(topic, number) for number in range(count)])
        yield from (letter for _, letter in letters_between(config, consumer, ranges))


@contextmanager
def a_consumer(config: KafkaConfig) -> Iterator[KafkaConsumer]:
    """A consumer for a block."""
    consumer = open_consumer(config)
    try:
        yield consumer
    finally:
        consumer.close(timeout_ms=_CLOSE_MS)


def ranges_of(
    config: KafkaConfig, consumer: KafkaConsumer, keys: Sequence[TopicPartition]
) -> dict[TopicPartition, tuple[int, int]]:
    """First offset and end of each partition; the end is where the oldest transaction in progress began, if any is.

    Raises:
        BrokerError: if the broker does not answer.
    """

    def ask() -> dict[TopicPartition, tuple[int, int]]:
        timeout_ms = int(config.request_timeout_s * 1000)
        try:
            ends = consumer.end_offsets(keys, timeout_ms=timeout_ms)
            starts = consumer.beginning_offsets(keys, timeout_ms=timeout_ms)
        except KeyError as error:  # kafka-python's way to say that a partition has no leader now
            raise LeaderNotAvailableError(str(error)) from error
        return {key: (starts[key], ends[key]) for key in keys}

    return asked(config, "asking for the offsets of dead letters", ask)


def settled_range(config: KafkaConfig, consumer: KafkaConsumer, key: TopicPartition, limit_s: float) -> tuple[int, int]:
    """First offset and end of a partition, once all transactions that were in progress have ended.

    A transaction of a process that died hides what others, whose letters are in the same partition, wrote since.

    Args:
        config: the broker.
        consumer: to ask with.
        key: which partition.
        limit_s: how long to wait; then what can be seen must do, which is logged.

    Raises:
        BrokerError: if the broker does not answer.
    """
    admin = open_admin(config)
    try:
        latest = {key: OffsetSpec.LATEST}
        everything = asked(
            config,
            "asking for the end of the dead letters",
            lambda: admin.list_partition_offsets(latest, isolation_level=IsolationLevel.READ_UNCOMMITTED)[key].offset,
        )
    finally:
        admin.close()
    deadline, told = time.monotonic() + limit_s, False
    while True:
        start, end = ranges_of(config, consumer, [key])[key]
        where = {"topic": key.topic, "partition": key.partition, "seen": end, "end": everything}
        if end >= everything:
            return start, end
        if time.monotonic() > deadline:
            log.warning("dead_letters_hidden", **where, waited_s=limit_s)
            return start, end
        if not told:
            log.info("dead_letters_in_transaction", **where)
            told = True
        time.sleep(_LOOK_AGAIN_S)


def letters_between(
    config: KafkaConfig, consumer: KafkaConsumer, ranges: Mapping[TopicPartition, tuple[int, int]]
) -> Iterator[tuple[int, DeadLetter]]:
    """Offset and letter of what lies between two offsets of each partition, in order within a partition.

    Records that are no dead letters are logged and passed over.

    Raises:
        BrokerAwayError: if the broker sends nothing for ``request_timeout_s`` although there is more.
    """
    for record in _records(config, consumer, ranges):
        letter = _as_letter(record)
        if letter is not None:
            yield record.offset, letter


def _records(
    config: KafkaConfig, consumer: KafkaConsumer, ranges: Mapping[TopicPartition, tuple[int, int]]
) -> Iterator[ConsumerRecord]:
    timeout_ms = int(config.request_timeout_s * 1000)
    slice_ms = min(timeout_ms, int(_SLICE_S * 1000))
    with broker_errors(config, "reading dead letters"):
        consumer.assign(list(ranges))
        for key, (start, _) in ranges.items():
            consumer.seek(key, start)
        before: dict[TopicPartition, int] = {}
        moved_at = time.monotonic()
        while True:
            at = {key: consumer.position(key, timeout_ms=timeout_ms) for key in ranges}
            if all(at[key] is not None and at[key] >= end for key, (_, end) in ranges.items()):
                return
            if at != before:
                before, moved_at = at, time.monotonic()
            elif time.monotonic() - moved_at > config.request_timeout_s:
                raise BrokerAwayError(
                    f"Kafka at {config.bootstrap_servers} sent nothing for {config.request_timeout_s:g} s, although "
                    f"topic {config.dead_letters_topic!r} holds more dead letters"
                )
            for key, records in consumer.poll(timeout_ms=slice_ms, max_records=1_000).items():
                yield from (record for record in records if record.offset < ranges[key][1])


def cut_to(largest: int, letter: DeadLetter) -> DeadLetter:
    """The letter, with its value cut if a topic whose ``max.message.bytes`` is ``largest`` would refuse it."""
    room = largest - len(letter.key or b"") - len(letter.detail.encode()) - _OVERHEAD_BYTES
    if letter.value is None or len(letter.value) <= room:
        return letter
    log.warning("dead_letter_cut", source=letter.source)
    kept = max(0, room)
    said = f"{letter.detail}{_CUT} {len(letter.value)} to {kept} bytes, the most the topic takes]"
    return letter.model_copy(update={"value": letter.value[:kept], "detail": said})


def is_cut(letter: DeadLetter) -> bool:
    """Whether the letter holds less than its record did."""
    return _CUT in letter.detail


def digest_of(letter: DeadLetter) -> bytes:
    """Tells a letter from all others, of an earlier topic of the same name too: the bytes count."""
    about = (letter.topic, letter.partition, letter.offset, letter.reason.value, letter.key, letter.value)
    return blake2b(repr(about).encode(), digest_size=16).digest()


def as_record(letter: DeadLetter) -> dict[str, Any]:
    """What ``KafkaProducer.send`` takes, but topic and partition."""
    headers = {
        "reason": letter.reason,
        "error-class": letter.error,
        "detail": letter.detail,
        "source-topic": letter.topic,
        "source-partition": letter.partition,
        "source-offset": letter.offset,
        "failed-at-ms": letter.failed_at_ms,
    }
    value = letter.value
    if letter.key is None and value is None:  # a tombstone without a key, which kafka-python does not send
        headers["absent"], value = "value", b""
    return {
        "key": letter.key,
        "value": value,
        "headers": [(name, str(header).encode()) for name, header in headers.items() if header is not None],
    }


def _as_letter(record: Any) -> DeadLetter | None:
    headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
    told = {name.removeprefix("source-").replace("-", "_"): value for name, value in headers.items()}
    told["error"] = headers.get("error-class")
    value = None if headers.get("absent") == "value" else record.value
    try:
        return DeadLetter.model_validate(told | {"key": record.key, "value": value})
    except ValidationError as error:
        where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        log.warning("dead_letter_damaged", **where, error=error.errors()[0]["msg"])
        return None


def chunks_of(letters: Sequence[DeadLetter]) -> Iterator[list[DeadLetter]]:
    """The letters in portions that are copied in memory one at a time: engagements may expire by the million."""
    chunk: list[DeadLetter] = []
    held = 0
    for letter in letters:
        chunk.append(letter)
        held += len(letter.key or b"") + len(letter.value or b"") + _OVERHEAD_BYTES
        if len(chunk) == _CHUNK_RECORDS or held >= _CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
