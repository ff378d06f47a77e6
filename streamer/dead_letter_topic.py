"""Dead letters in a topic: each once, although a crash makes their records be set aside again."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import structlog
from kafka import TopicPartition
from kafka.admin import TransactionState
from kafka.errors import KafkaTimeoutError, TransactionalIdNotFoundError

from indexer.failpoints import failpoint
from schemas.errors import BrokerError, FencedError
from streamer.dead_letter_records import (
    a_consumer,
    as_record,
    chunks_of,
    cut_to,
    digest_of,
    letters_between,
    settled_range,
)
from streamer.kafka_clients import (
    asked,
    broker_errors,
    close_producer,
    flush,
    open_admin,
    open_producer,
    partition_counts,
    topic_settings,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka import KafkaProducer

    from schemas.config import KafkaConfig
    from schemas.dead_letters import DeadLetter

log = structlog.get_logger(__name__)

_CLOSE_S: Final = 2.0
_USUAL_LIMIT: Final = 1_048_588  # max.message.bytes unless somebody sets it
_LARGEST_REQUEST: Final = 96 << 20  # more than a fetch brings: the broker says what is too large, for this topic
TRANSACTION_S: Final = 10.0  # the broker ends one that takes longer: whose process died hides what others wrote since
_HIDDEN_S: Final = (
    TRANSACTION_S + 15.0
)  # until it does; it looks every 10 s (transaction.abort.timed.out...interval.ms)
_INIT_AT_LEAST_S: Final = 10.0  # a fresh broker makes its topic of transactions first
_MOST_FOUND: Final = 1_000_000  # letters remembered, about 150 bytes each


class TopicDeadLetters:
    """Records of ``kafka.dead_letters_topic``: key and value as they were, the rest in headers.

    Headers, all UTF-8: ``reason``, ``error-class``, ``detail``, ``source-topic``, ``source-partition``,
    ``source-offset``, ``failed-at-ms``; ``absent`` names what was null (``key``, ``value``) where Kafka would not tell.

    Letters of shard N are in partition N modulo the number of partitions. Several shards may share one.

    Letters are sent in transactions of at most :data:`TRANSACTION_S`, whose id ``GROUP-deadletters-SHARD`` belongs to
    whoever made the newest sink of the shard: what a process that was taken for dead had on its way is refused, and
    seen by nobody.

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
        self._transactional_id = f"{config.group_id}-deadletters-{shard}"
        self._home = TopicPartition(config.dead_letters_topic, shard % count)
        self._largest = int(settings.get("max.message.bytes", _USUAL_LIMIT))
        self._identity = (-1, -1)
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
        began = self._position
        try:
            for chunk in chunks_of(letters):  # each in a transaction of its own, which is soon over
                self._write(chunk)
        except BrokerError:
            self.close()
            self._position = began  # portions that arrived are found by the next try
            raise
        failpoint("letters.after")

    def restore(self, position: int | None) -> None:
        """Look for letters that were sent after ``position`` was stored: they are not sent again. None: for all.

        A topic that was cut or made anew is searched from its beginning, which is logged.

        Raises:
            BrokerError: if the broker does not answer.
        """
        self._found.clear()
        self._order.clear()
        with a_consumer(self._config) as consumer:
            start, end = settled_range(self._config, consumer, self._home, _HIDDEN_S)
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
            for offset, letter in letters_between(self._config, consumer, {self._home: (start, end)}):
                if letter.partition == self._shard:
                    self._remember(letter, offset)
        self._position = self._found[self._order[0]] if self._order else end
        if self._found:
            log.info("dead_letters_found", shard=self._shard, letters=len(self._found), since=position)

    def close(self) -> None:
        """Disconnect; idempotent. Everything written is confirmed already."""
        if self._producer is not None:
            self._identity = _identity_of(self._producer)  # which it may have renewed by itself
            close_producer(self._producer, _CLOSE_S)
            self._producer = None

    def _connect(self) -> KafkaProducer:
        """A producer that has ended whatever transaction was open, so that :meth:`restore` sees all there is."""
        producer = open_producer(
            self._config,
            max_request_size=_LARGEST_REQUEST,
            transactional_id=self._transactional_id,
            transaction_timeout_ms=int(TRANSACTION_S * 1000),
        )
        try:
            doing = f"taking over the dead letters of shard {self._shard}"
            limit_s = max(_INIT_AT_LEAST_S, self._config.request_timeout_s)
            asked(self._config, doing, producer.init_transactions, limit_s)
        except BaseException:
            close_producer(producer, _CLOSE_S)
            raise
        self._identity = _identity_of(producer)
        return producer

    def _write(self, letters: Sequence[DeadLetter]) -> None:
        """One chunk, with one more try."""
        if self._producer is None:
            self._recover()
        try:
            self._send(letters)
        except BrokerError as error:
            log.warning("dead_letters_sent_again", letters=len(letters), error=str(error))
            try:
                self._recover()
            except FencedError:
                raise
            except BrokerError as away:
                log.warning("dead_letter_topic_is_away", error=str(away))
                raise error from away
            self._send(letters)

    def _recover(self) -> None:
        """A new producer, as after one refusal the old one refuses everything; and what arrived of the old one.

        Raises:
            FencedError: if another process has taken over since: then it must not be pushed out.
        """
        self.close()
        if not self._is_ours():
            raise FencedError(
                f"another process writes the dead letters of shard {self._shard} as group "
                f"{self._config.group_id!r}: it owns the shard now"
            )
        self._producer = self._connect()
        self.restore(self._position)

    def _is_ours(self) -> bool:
        """Whether nobody took over since we did.

        What a write failed with does not tell. The broker ends a transaction that takes longer than
        :data:`TRANSACTION_S`, and then refuses us as if somebody had taken over; but it then says that the transaction
        was aborted, one epoch above ours. One that somebody took over is empty, or further.
        """

        def ask() -> Any:
            try:
                return admin.describe_transactions([self._transactional_id])[self._transactional_id]
            except TransactionalIdNotFoundError:  # forgotten: unused for transactional.id.expiration.ms
                return None

        admin = open_admin(self._config)
        try:
            found = asked(self._config, f"asking who owns {self._transactional_id!r}", ask)
        finally:
            admin.close()
        if found is None or (found.producer_id, found.producer_epoch) == self._identity:
            return True
        aborted = found.state in {TransactionState.PREPARE_ABORT, TransactionState.COMPLETE_ABORT}
        return aborted and (found.producer_id, found.producer_epoch - 1) == self._identity

    def _send(self, letters: Sequence[DeadLetter]) -> None:
        there: list[bytes] = []
        new: list[DeadLetter] = []
        for letter in (cut_to(self._largest, each) for each in letters):
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
        with broker_errors(self._config, f"writing {len(letters)} dead letters to topic {topic!r}"):
            producer.begin_transaction()
            place = {"topic": topic, "partition": self._home.partition}
            sent = [(letter, producer.send(**place, **as_record(letter))) for letter in letters]
            flush(producer, 2 * self._config.request_timeout_s)
            for letter, future in sent:
                if future.failed():
                    raise _refusal(self._config, topic, letter, future.exception)
            # As commit_transaction does, which would wait for ever for a broker that is away.
            committed = producer._transaction_manager.begin_commit()  # noqa: SLF001
            producer._sender.wakeup()  # noqa: SLF001
            if not committed.wait(2_000 * self._config.request_timeout_s):
                raise KafkaTimeoutError("the transaction was not confirmed in time")
        return sent

    def _remember(self, letter: DeadLetter, offset: int) -> None:
        if len(self._found) >= _MOST_FOUND:
            log.warning("dead_letters_not_remembered", most=_MOST_FOUND, source=letter.source)
            return
        digest = digest_of(letter)
        if digest not in self._found:
            self._found[digest] = offset
            self._order.append(digest)


def _identity_of(producer: KafkaProducer) -> tuple[int, int]:
    """What the broker knows a transactional producer by: its id and epoch."""
    found = producer._transaction_manager.producer_id_and_epoch  # noqa: SLF001
    return found.producer_id, found.epoch


def _refusal(config: KafkaConfig, topic: str, letter: DeadLetter, why: BaseException) -> BrokerError:
    error = BrokerError(
        f"Kafka at {config.bootstrap_servers} did not take the dead letter of {letter.source} into topic {topic!r}: "
        f"{why}"
    )
    error.__cause__ = why
    return error
