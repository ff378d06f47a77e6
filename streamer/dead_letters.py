"""Records set aside, with why: in a topic beside the source topics, or in a file beside the store.

A sink's ``write`` returns when the letters are durable, and only then may the source offset move past their records.
After a crash in between the same records are set aside again. The file takes that back: the store keeps its length, and
:meth:`FileDeadLetters.restore` cuts what came after. The topic cannot; there such letters appear twice, with equal
source coordinates.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from kafka import TopicPartition
from pydantic import ValidationError

from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError, StoreError, UsageError
from streamer.kafka_clients import (
    broker_errors,
    close_producer,
    open_admin,
    open_consumer,
    open_producer,
    partition_counts,
    topic_settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kafka import KafkaProducer

    from schemas.config import KafkaConfig

log = structlog.get_logger(__name__)

_BLOCK_BYTES: Final = 1 << 16
_CLOSE_S: Final = 2.0
_OVERHEAD_BYTES: Final = 1_024  # of a record, its batch, and headers other than the detail
_USUAL_LIMIT: Final = 1_048_588  # max.message.bytes unless somebody sets it
_LARGEST_REQUEST: Final = 96 << 20  # more than a fetch brings: the broker says what is too large, for this topic


class DeadLetterSink(Protocol):
    """Where the writer puts records that it cannot apply."""

    @property
    def position(self) -> int | None:
        """To be stored with the source offsets and given to :meth:`restore`; None if the sink has no use for it."""
        ...

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Keep the letters; they are durable when this returns."""
        ...

    def restore(self, position: int | None) -> None:
        """Forget what was written after ``position``, before anything is written; None: nothing was ever stored."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...


class FileDeadLetters:
    """JSON lines in a file that this process alone appends to.

    Raises:
        StoreError: here and in the methods, if the file cannot be opened, written or synced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)  # or a power cut forgets the file, whatever was synced into it
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreError(f"cannot open the dead-letter file {path}: {error}") from error
        self._open = True
        self._position = os.fstat(self._file).st_size

    @property
    def position(self) -> int:
        """Length of the file in bytes after the last :meth:`write` or :meth:`restore`."""
        return self._position

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Append one line each and sync the file; wholly or, when the disk is full, not at all."""
        if not letters:
            return
        lines = b"".join(letter.model_dump_json().encode() + b"\n" for letter in letters)
        try:
            written = 0
            while written < len(lines):
                written += os.pwrite(self._file, memoryview(lines)[written:], self._position + written)
            os.fdatasync(self._file)
        except OSError as error:
            # A torn line would damage the next one too, if the disk gets room again and the writer goes on.
            with suppress(OSError):  # the first error is the one to tell
                os.ftruncate(self._file, self._position)
            raise StoreError(
                f"cannot write {len(letters)} dead letters to {self.path}: {error}; free disk space, then start again"
            ) from error
        self._position += len(lines)

    def restore(self, position: int | None) -> None:
        """Cut the file to ``position`` bytes; None keeps all whole lines.

        A file that is shorter was emptied or replaced by someone: it is kept as it is, which is logged.
        """
        size = self._position
        whole = _end_of_last_line(self._file, size if position is None else min(position, size))
        if position is not None and size < position:
            log.warning("dead_letter_file_shrank", path=str(self.path), stored_position=position, size=size)
        if whole < size:
            log.info("dead_letters_cut", path=str(self.path), bytes=size - whole)
            try:
                os.ftruncate(self._file, whole)
                os.fsync(self._file)
            except OSError as error:
                raise StoreError(f"cannot cut the dead-letter file {self.path}: {error}") from error
        self._position = whole

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._open:
            self._open = False
            os.close(self._file)


class TopicDeadLetters:
    """Records of ``kafka.dead_letters_topic``: key and value as they were, the rest in headers.

    Headers, all UTF-8: ``reason``, ``detail``, ``source-topic``, ``source-partition``, ``source-offset``,
    ``failed-at-ms``; ``absent`` names what was null (``key``, ``value``) where Kafka would not tell.

    Raises:
        BrokerError: if no broker answers, or the topic is missing.
    """

    position: None = None

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        admin = open_admin(config)
        try:
            partition_counts(admin, config, [config.dead_letters_topic])
            settings = topic_settings(admin, config.dead_letters_topic, ["max.message.bytes"])
        finally:
            admin.close()
        self._largest = int(settings.get("max.message.bytes", _USUAL_LIMIT))
        self._producer: KafkaProducer = open_producer(config, max_request_size=_LARGEST_REQUEST)
        self._open = True

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Produce the letters and wait until all in-sync replicas have them.

        A value that the topic does not take (``max.message.bytes``) is cut, which its ``detail`` then says: waiting for
        someone to raise the limit would stop the stream for one record that is still at its source.

        Raises:
            BrokerError: if the broker does not confirm within twice ``kafka.request_timeout_s``. Make a new sink then:
                after one refusal this one's producer refuses everything.
        """
        topic = self._config.dead_letters_topic
        with broker_errors(self._config, f"writing {len(letters)} dead letters to topic {topic!r}"):
            sent = [(letter, self._producer.send(topic, **_as_record(self._cut(letter)))) for letter in letters]
            self._producer.flush(2 * self._config.request_timeout_s)
        for letter, future in sent:
            if future.failed():
                raise BrokerError(
                    f"Kafka at {self._config.bootstrap_servers} did not take the dead letter of "
                    f"{letter.topic}-{letter.partition} offset {letter.offset} into topic {topic!r}: {future.exception}"
                )

    def restore(self, position: int | None) -> None:
        """Nothing: a topic cannot be cut."""

    def close(self) -> None:
        """Disconnect; idempotent. Everything written is confirmed already."""
        if self._open:
            self._open = False
            close_producer(self._producer, _CLOSE_S)

    def _cut(self, letter: DeadLetter) -> DeadLetter:
        room = self._largest - len(letter.key or b"") - len(letter.detail.encode()) - _OVERHEAD_BYTES
        if letter.value is None or len(letter.value) <= room:
            return letter
        log.warning("dead_letter_cut", source=f"{letter.topic}-{letter.partition}", offset=letter.offset)
        kept = max(0, room)
        said = f"{letter.detail} [value cut from {len(letter.value)} to {kept} bytes, the most the topic takes]"
        return letter.model_copy(update={"value": letter.value[:kept], "detail": said})


def read_file(path: Path) -> Iterator[DeadLetter]:
    """The letters in a file of :class:`FileDeadLetters`, oldest first; none if there is no file.

    Damaged lines are logged with their number and passed over. A last line without its end is being written just now.

    Raises:
        UsageError: if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    try:
                        yield DeadLetter.model_validate_json(line)
                    except ValidationError as error:
                        log.warning("dead_letter_damaged", path=str(path), line=number, error=error.errors()[0]["msg"])
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot read the dead-letter file {path}: {error}") from error


def read_topic(config: KafkaConfig) -> Iterator[DeadLetter]:
    """The letters in ``kafka.dead_letters_topic`` from the oldest kept to the newest at the time of the call.

    They are in order within a partition of the topic. Records that are no dead letters are logged and passed over.

    Raises:
        BrokerError: if the broker does not answer, or the topic is missing.
    """
    admin = open_admin(config)
    try:
        count = partition_counts(admin, config, [config.dead_letters_topic])[config.dead_letters_topic]
    finally:
        admin.close()
    consumer = open_consumer(config)
    try:
        keys = [TopicPartition(config.dead_letters_topic, number) for number in range(count)]
        consumer.assign(keys)
        timeout_ms = int(config.request_timeout_s * 1000)
        with broker_errors(config, "reading dead letters"):
            ends = consumer.end_offsets(keys, timeout_ms=timeout_ms)
            for key, offset in consumer.beginning_offsets(keys, timeout_ms=timeout_ms).items():
                consumer.seek(key, offset)
            while any(consumer.position(key, timeout_ms=timeout_ms) < end for key, end in ends.items()):
                fetched = consumer.poll(timeout_ms=timeout_ms, max_records=1_000)
                if not fetched:
                    raise BrokerError(
                        f"Kafka at {config.bootstrap_servers} sent nothing for {config.request_timeout_s:g} s, "
                        f"although topic {config.dead_letters_topic!r} holds more dead letters"
                    )
                for key, records in fetched.items():
                    yield from (
                        letter for r in records if r.offset < ends[key] and (letter := _as_letter(r)) is not None
                    )
    finally:
        consumer.close(timeout_ms=2_000)


def _as_record(letter: DeadLetter) -> dict[str, Any]:
    headers = {
        "reason": letter.reason,
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
        "headers": [(name, str(header).encode()) for name, header in headers.items()],
    }


def _as_letter(record: Any) -> DeadLetter | None:
    headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
    told = {name.removeprefix("source-").replace("-", "_"): value for name, value in headers.items()}
    value = None if headers.get("absent") == "value" else record.value
    try:
        return DeadLetter.model_validate(told | {"key": record.key, "value": value})
    except ValidationError as error:
        where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        log.warning("dead_letter_damaged", **where, error=error.errors()[0]["msg"])
        return None


def _end_of_last_line(file: int, size: int) -> int:
    """Where the last whole line of the first ``size`` bytes ends; a crash may have torn the one after it."""
    while size:
        start = max(0, size - _BLOCK_BYTES)
        newline = os.pread(file, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0
