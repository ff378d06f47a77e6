"""Dead letters tried again: their records go back to the topics they came from, each once."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

import orjson

from schemas.errors import BrokerError, StoreError
from streamer.dead_letter_records import digest_of, is_cut
from streamer.kafka_clients import broker_errors, flush, open_admin, open_producer, partition_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from schemas.config import KafkaConfig
    from schemas.dead_letters import DeadLetter

REPLAYED_FILE: Final = "deadletters-replayed.jsonl"
HEADER: Final = "replayed-from"
_CHUNK: Final = 100


@dataclass(slots=True)
class Replayed:
    """What came of a replay: how many were sent, or would be, and why the others were not."""

    sent: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)


def replay_letters(
    letters: Iterable[DeadLetter], config: KafkaConfig, noted: Path, *, limit: int | None = None, dry_run: bool = False
) -> Replayed:
    """Send the records of letters to the partitions they came from, with a header ``replayed-from``.

    What was sent is noted in a file when the broker has it. A process that is killed in between sends up to a hundred
    of them again the next time: an item's second event changes nothing, an engagement counts twice unless it has an
    ``event_id`` and ``[dedupe]`` is on.

    Args:
        letters: oldest first.
        config: the broker and the topics; letters of other topics are passed over.
        noted: JSON lines, one for each letter that was sent.
        limit: letters sent at most.
        dry_run: send nothing.

    Raises:
        BrokerError: if the broker does not take one, or a topic is missing.
        StoreError: if the file cannot be read or written.
    """
    done = Replayed()
    to_send = islice(_sendable(letters, config, _read_noted(noted), done.passed_over), limit)
    if dry_run:
        done.sent = sum(1 for _ in to_send)
        return done
    with closing(open_producer(config)) as producer:
        while chunk := list(islice(to_send, _CHUNK)):
            with broker_errors(config, "replaying dead letters"):
                futures = [
                    producer.send(
                        letter.topic,
                        letter.value,
                        letter.key,
                        partition=letter.partition,
                        headers=[(HEADER, letter.source.encode())],
                    )
                    for letter in chunk
                ]
                flush(producer, 2 * config.request_timeout_s)
            taken = [letter for letter, future in zip(chunk, futures, strict=True) if future.succeeded()]
            _note(noted, taken)
            done.sent += len(taken)
            for letter, future in zip(chunk, futures, strict=True):
                if future.failed():
                    raise BrokerError(
                        f"Kafka at {config.bootstrap_servers} did not take {letter.source} into its topic again: "
                        f"{future.exception}; {done.sent} were sent and noted, call again for the rest"
                    )
    return done


def _sendable(
    letters: Iterable[DeadLetter], config: KafkaConfig, sent: set[str], passed_over: Counter[str]
) -> Iterator[DeadLetter]:
    with closing(open_admin(config)) as admin:
        counts = partition_counts(admin, config, [config.items_topic, config.engagements_topic])
    for letter in letters:
        digest = digest_of(letter).hex()
        if letter.topic not in counts:
            why = "of a topic that [kafka] does not name"
        elif letter.partition >= counts[letter.topic]:
            why = "of a partition that the topic does not have"
        elif digest in sent:
            why = "sent before"
        elif is_cut(letter):
            why = "value was cut: it is whole at its source only"
        elif letter.key is None and letter.value is None:
            why = "has neither key nor value"
        else:
            sent.add(digest)
            yield letter
            continue
        passed_over[why] += 1


def _read_noted(noted: Path) -> set[str]:
    try:
        lines = noted.read_bytes().split(b"\n")[:-1]  # a torn last line was being written when the process was killed
        return {str(orjson.loads(line)["digest"]) for line in lines if line}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"cannot read {noted}: {error}; it says which dead letters were sent again. Repair the line, or remove the "
            "file to send all again"
        ) from error


def _note(noted: Path, letters: list[DeadLetter]) -> None:
    at_ms = time.time_ns() // 1_000_000
    lines = [
        orjson.dumps({"digest": digest_of(letter).hex(), "letter": letter.source, "replayed_at_ms": at_ms}) + b"\n"
        for letter in letters
    ]
    try:
        with noted.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # a line that a kill has torn
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(
            f"cannot write {noted}: {error}; {len(letters)} dead letters were sent again and are not noted"
        ) from error
