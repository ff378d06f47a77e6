"""Places in a source as people name them: an offset, a time, ``earliest``, ``latest``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from kafka import TopicPartition
from pydantic import TypeAdapter, ValidationError

from schemas.config import Config
from schemas.errors import UsageError
from schemas.events import ENGAGEMENT, ITEM_EVENT, TimeMs
from streamer.kafka_clients import asked, open_consumer
from streamer.sources.base import Partition, Stream
from streamer.sources.eventlog import EventLogSource

_OFFSET: Final = re.compile(r"\d{1,18}")
_CHUNK: Final = 4_096


def resolve(config: Config, partitions: Iterable[Partition], where: str) -> dict[Partition, int]:
    """The offset in each partition of a place.

    Args:
        config: names the source.
        partitions: which are asked for.
        where: ``earliest``, ``latest``, a whole number (the same offset in each), or an RFC 3339 time: the first record
            at that time or later; of an event log, whose records have no time of their own, by ``occurred_at``.

    Raises:
        UsageError: if ``where`` is none of these.
        BrokerError: if the broker does not answer.
    """
    wanted = list(partitions)
    if _OFFSET.fullmatch(where):
        return dict.fromkeys(wanted, int(where))
    moment = None if where in {"earliest", "latest"} else _moment(where)
    if config.source.kind == "kafka":
        return _of_topics(config, wanted, where, moment)
    return _of_log(config, wanted, where, moment)


def parse_resets(given: Iterable[str]) -> dict[str, str]:
    """``PARTITION=WHERE`` as given on the command line.

    Raises:
        UsageError: naming the one that is not of that form.
    """
    out: dict[str, str] = {}
    for each in given:
        name, equals, where = each.partition("=")
        if not (name and equals and where):
            raise UsageError(f"--reset {each}: give PARTITION=WHERE, for example items-0=earliest")
        if not _OFFSET.fullmatch(where) and where not in {"earliest", "latest"}:
            _moment(where)
        out[name] = where
    return out


def _moment(where: str) -> int:
    try:
        return TypeAdapter(TimeMs).validate_python(where)
    except ValidationError:
        raise UsageError(
            f"{where!r} is no place in a topic: give earliest, latest, an offset, or a time such as "
            "2017-10-01T03:00:00Z"
        ) from None


def _of_topics(config: Config, wanted: list[Partition], where: str, moment: int | None) -> dict[Partition, int]:
    keys = {partition: TopicPartition(partition.topic, partition.number) for partition in wanted}
    timeout_ms = int(config.kafka.request_timeout_s * 1_000)
    consumer = open_consumer(config.kafka)

    def ask() -> Mapping[TopicPartition, int]:
        ends: dict[TopicPartition, int] = consumer.end_offsets(list(keys.values()), timeout_ms=timeout_ms)
        if where == "latest":
            return ends
        if moment is None:
            found: dict[TopicPartition, int] = consumer.beginning_offsets(list(keys.values()), timeout_ms=timeout_ms)
            return found
        at = consumer.offsets_for_times(dict.fromkeys(keys.values(), moment), timeout_ms=timeout_ms)
        return {key: end if at.get(key) is None else at[key].offset for key, end in ends.items()}

    try:
        offsets = asked(config.kafka, f"asking where {where} is", ask)
    except KeyError as error:
        raise UsageError(f"Kafka at {config.kafka.bootstrap_servers} does not know {error}") from error
    finally:
        consumer.close(timeout_ms=2_000)
    return {partition: offsets[key] for partition, key in keys.items()}


def _of_log(config: Config, wanted: list[Partition], where: str, moment: int | None) -> dict[Partition, int]:
    if where == "earliest":
        return dict.fromkeys(wanted, 0)
    if config.source.path is None:
        raise UsageError("source.kind is eventlog but source.path is not set; give --events DIRECTORY")
    source = EventLogSource(config.source.path)
    try:
        ends = source.end_offsets()
        found = {partition: ends.get(partition, 0) for partition in wanted}
        if moment is None:
            return found
        open_ = set(found)
        while open_ and not source.exhausted:
            for records in source.poll(_CHUNK, 0.0):
                for offset, value in zip(records.offsets, records.values, strict=True):
                    if records.partition not in open_:
                        break
                    if _time_of(records.partition, value) >= moment:
                        found[records.partition] = offset
                        open_.discard(records.partition)
        return found
    finally:
        source.close()


def _time_of(partition: Partition, value: bytes | None) -> int:
    """Of an event; of what is none, a time before all."""
    validate = ITEM_EVENT.validate_json if partition.stream is Stream.ITEMS else ENGAGEMENT.validate_json
    try:
        return -1 if value is None else validate(value).occurred_at
    except ValidationError:
        return -1
