"""Dead letters in a topic: each once, although a crash makes their records be set aside again."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import structlog
from kafka import TopicPartition
from kafka.errors import InvalidProducerEpochError, KafkaTimeoutError, LeaderNotAvailableError, ProducerFencedError
from pydantic import ValidationError

from indexer.failpoints import failpoint
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError, FencedError
from streamer.kafka_clients import (
    asked,
    broker_errors,
    close_producer,
    open_admin,
    open_consumer,
    open_producer,
    partition_counts,
    topic_settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kafka import KafkaConsumer, KafkaProducer
    from kafka.consumer.fetcher import ConsumerRecord

    from schemas.config import KafkaConfig

log = structlog.get_logger(__name__)

_CLOSE_S: Final = 2.0
_CLOSE_MS: Final = 2_000
_OVERHEAD_BYTES: Final = 1_024  # of a record, its batch, and headers other than the detail
_USUAL_LIMIT: Final = 1_048_588  # max.message.bytes unless somebody sets it
_LARGEST_REQUEST: Final = 96 << 20  # more than a fetch brings: the broker says what is too large, for this topic
_CUT: Final = " [value cut from"
_TRANSACTION_AT_LEAST_S: Final = 60.0  # an open transaction of a dead process hides later ones for this long at most
_FENCED: Final = (ProducerFencedError, InvalidProducerEpochError)
_MOST_FOUND: Final = 1_000_000  # letters remembered, about 150 bytes each


class TopicDeadLetters:
    """Records of ``kafka.dead_letters_topic``: key and value as they were, the rest in headers.

    Headers, all UTF-8: ``reason``, ``error-class``, ``detail``, ``source-topic``, ``source-partition``,
    ``source-offset``, ``failed-at-ms``; ``absent`` names what was null (``key``, ``value``) where Kafka would not tell.

    Letters of shard N are in partition N modulo the number of partitions. Several shards may share one.

    Letters are sent in transactions, whose id ``GROUP-deadletters-SHARD`` belongs to whoever made the newest sink of the
    shard: what a process that was taken for dead had on its way is refused, and seen by nobody.

    Args:
        config: which broker and topic.
        shard: whose letters these are: those of source partitions with this number.

    Raises:
        BrokerError: if no broker answers, the topic is missing, or we may not use that transactional id.
    """

    def __init__(self, config: KafkaConfig, shard: int = 0) -> None:
        self._config = config
        self._shard = shard
        admin = open_admin(config)
        try:
            count = partition_counts(admin, config, [config.dead_letters_topic])[config.dead_letters_topic]
            settings = topic_settings(admin, config.dead_letters_topic, ["max.message.bytes"])
        finally:
            admin.close()
        self._home = TopicPartition(config.dead_letters_topic, shard % count)
        self._largest = int(settings.get("max.message.bytes", _USUAL_LIMIT))
        self._producer: KafkaProducer | None = self._connect()
        self._position: int | None = None
        self._found: dict[bytes, int] = {}  # letters that were sent before a crash, with their offset
        self._order: deque[bytes] = deque()  # theirs, oldest first

    @property
    def position(self) -> int | None:
        """Offset in the partition from which :meth:`restore` has to look; None before anything is known."""
        return self._position

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Produce the letters and wait until all in-sync replicas have them; those that are there are not sent again.

        A value that the topic does not take (``max.message.bytes``) is cut, which its ``detail`` then says: waiting for
        someone to raise the limit would stop the stream for one record that is still at its source.

        Raises:
            BrokerError: if the broker does not confirm within twice ``kafka.request_timeout_s``, and with a new
                connection neither. What arrived nevertheless is found by the next try.
            FencedError: if another process has made a sink of this shard since.
        """
        if not letters:
            return
        failpoint("letters.before")
        if self._producer is None:
            self._recover()
        try:
            self._send(letters)
        except FencedError:
            raise
        except BrokerError as error:
            log.warning("dead_letters_sent_again", letters=len(letters), error=str(error))
            try:
                self._recover()
            except BrokerError as away:
                log.warning("dead_letter_topic_is_away", error=str(away))
                raise error from away
            self._send(letters)
        failpoint("letters.after")

    def restore(self, position: int | None) -> None:
        """Look for letters that were sent after ``position`` was stored: they are not sent again. None: for all.

        A topic that was cut or made anew is searched from its beginning, which is logged.

        Raises:
            BrokerError: if the broker does not answer.
        """
        self._found.clear()
        self._order.clear()
        with _consumer(self._config) as consumer:
            ((start, end),) = _ranges(self._config, consumer, [self._home]).values()
            if position is not None and not start <= position <= end:
                log.warning(
                    "dead_letter_topic_shrank",
                    topic=self._home.topic,
                    partition=self._home.partition,
                    stored_position=position,
                    holds=[start, end],
                )
            elif position is not None:
                start = position
            for record in _read(self._config, consumer, {self._home: (start, end)}):
                letter = _as_letter(record)
                if letter is not None and letter.partition == self._shard:
                    self._remember(letter, record.offset)
        self._position = self._found[self._order[0]] if self._order else end
        if self._found:
            log.info("dead_letters_found", shard=self._shard, letters=len(self._found), since=position)

    def close(self) -> None:
        """Disconnect; idempotent. Everything written is confirmed already."""
        if self._producer is not None:
            close_producer(self._producer, _CLOSE_S)
            self._producer = None

    def _connect(self) -> KafkaProducer:
        """A producer that has ended whatever transaction was open, so that :meth:`restore` sees all there is."""
        producer = open_producer(
            self._config,
            max_request_size=_LARGEST_REQUEST,
            transactional_id=f"{self._config.group_id}-deadletters-{self._shard}",
            transaction_timeout_ms=int(max(_TRANSACTION_AT_LEAST_S, 4 * self._config.request_timeout_s) * 1000),
        )
        try:
            asked(self._config, "taking over the dead letters of a shard", producer.init_transactions)
        except BaseException:
            close_producer(producer, _CLOSE_S)
            raise
        return producer

    def _recover(self) -> None:
        """A new producer, as after one refusal the old one refuses everything; and what arrived of the old one."""
        self.close()
        self._producer = self._connect()
        self.restore(self._position)

    def _send(self, letters: Sequence[DeadLetter]) -> None:
        there: list[bytes] = []
        new: list[DeadLetter] = []
        for letter in map(self._cut, letters):
            digest = digest_of(letter) if self._found else b""
            if digest in self._found:
                there.append(digest)
            else:
                new.append(letter)
        sent: list[tuple[DeadLetter, Any]] = []
        try:
            if new:
                sent = self._transact(new)
        except BrokerError:
            self.close()
            raise
        # A broker that has a record already does not say where (-1).
        ends = [future.value.offset + 1 for _, future in sent]
        ends += [self._found.pop(digest) + 1 for digest in there if digest in self._found]
        while self._order and self._order[0] not in self._found:
            self._order.popleft()
        # Letters found and not written yet must be found again after the next crash.
        self._position = self._found[self._order[0]] if self._order else max([self._position or 0, *ends])

    def _transact(self, letters: Sequence[DeadLetter]) -> list[tuple[DeadLetter, Any]]:
        """Send the letters, all or none; returns each with the future that says where it is."""
        producer, topic = self._producer, self._home.topic
        assert producer is not None
        try:
            with broker_errors(self._config, f"writing {len(letters)} dead letters to topic {topic!r}"):
                producer.begin_transaction()
                place = {"topic": topic, "partition": self._home.partition}
                sent = [(letter, producer.send(**place, **_as_record(letter))) for letter in letters]
                producer.flush(2 * self._config.request_timeout_s)
                for letter, future in sent:
                    if future.failed():
                        raise _refusal(self._config, topic, letter, future.exception)
                # As commit_transaction does, which would wait for ever for a broker that is away.
                committed = producer._transaction_manager.begin_commit()  # noqa: SLF001
                producer._sender.wakeup()  # noqa: SLF001
                if not committed.wait(2_000 * self._config.request_timeout_s):
                    raise KafkaTimeoutError("the transaction was not confirmed in time")
        except BrokerError as error:
            if isinstance(error.__cause__, _FENCED):
                raise FencedError(
                    f"another process writes the dead letters of shard {self._shard} as group "
                    f"{self._config.group_id!r}: it owns the shard now"
                ) from error
            raise
        return sent

    def _remember(self, letter: DeadLetter, offset: int) -> None:
        if len(self._found) >= _MOST_FOUND:
            log.warning("dead_letters_not_remembered", most=_MOST_FOUND, source=letter.source)
            return
        digest = digest_of(letter)
        if digest not in self._found:
            self._found[digest] = offset
            self._order.append(digest)

    def _cut(self, letter: DeadLetter) -> DeadLetter:
        room = self._largest - len(letter.key or b"") - len(letter.detail.encode()) - _OVERHEAD_BYTES
        if letter.value is None or len(letter.value) <= room:
            return letter
        log.warning("dead_letter_cut", source=letter.source)
        kept = max(0, room)
        said = f"{letter.detail}{_CUT} {len(letter.value)} to {kept} bytes, the most the topic takes]"
        return letter.model_copy(update={"value": letter.value[:kept], "detail": said})


def _refusal(config: KafkaConfig, topic: str, letter: DeadLetter, why: BaseException) -> BrokerError:
    error = BrokerError(
        f"Kafka at {config.bootstrap_servers} did not take the dead letter of {letter.source} into topic {topic!r}: {why}"
    )
    error.__cause__ = why
    return error


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
    with _consumer(config) as consumer:
        ranges = _ranges(config, consumer, [TopicPartition(topic, number) for number in range(count)])
        for record in _read(config, consumer, ranges):
            letter = _as_letter(record)
            if letter is not None:
                yield letter


@contextmanager
def _consumer(config: KafkaConfig) -> Iterator[KafkaConsumer]:
    """A consumer for a block."""
    consumer = open_consumer(config)
    try:
        yield consumer
    finally:
        consumer.close(timeout_ms=_CLOSE_MS)


def _ranges(
    config: KafkaConfig, consumer: KafkaConsumer, keys: Sequence[TopicPartition]
) -> dict[TopicPartition, tuple[int, int]]:
    """First offset and end of each partition; an end behind records of a transaction in progress."""

    def ask() -> dict[TopicPartition, tuple[int, int]]:
        timeout_ms = int(config.request_timeout_s * 1000)
        try:
            ends = consumer.end_offsets(keys, timeout_ms=timeout_ms)
            starts = consumer.beginning_offsets(keys, timeout_ms=timeout_ms)
        except KeyError as error:  # kafka-python's way to say that a partition has no leader now
            raise LeaderNotAvailableError(str(error)) from error
        return {key: (starts[key], ends[key]) for key in keys}

    return asked(config, "asking for the offsets of dead letters", ask)


def _read(
    config: KafkaConfig, consumer: KafkaConsumer, ranges: Mapping[TopicPartition, tuple[int, int]]
) -> Iterator[ConsumerRecord]:
    """The records between two offsets of each partition."""
    timeout_ms = int(config.request_timeout_s * 1000)
    with broker_errors(config, "reading dead letters"):
        consumer.assign(list(ranges))
        for key, (start, _) in ranges.items():
            consumer.seek(key, start)
        while any(consumer.position(key, timeout_ms=timeout_ms) < end for key, (_, end) in ranges.items()):
            fetched = consumer.poll(timeout_ms=timeout_ms, max_records=1_000)
            if not fetched:
                raise BrokerError(
                    f"Kafka at {config.bootstrap_servers} sent nothing for {config.request_timeout_s:g} s, although "
                    f"topic {config.dead_letters_topic!r} holds more dead letters"
                )
            for key, records in fetched.items():
                yield from (record for record in records if record.offset < ranges[key][1])


def is_cut(letter: DeadLetter) -> bool:
    """Whether the letter holds less than its record did."""
    return _CUT in letter.detail


def digest_of(letter: DeadLetter) -> bytes:
    """Tells a letter from all others, of an earlier topic of the same name too: the bytes count."""
    about = (letter.topic, letter.partition, letter.offset, letter.reason.value, letter.key, letter.value)
    return blake2b(repr(about).encode(), digest_size=16).digest()


def _as_record(letter: DeadLetter) -> dict[str, Any]:
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
