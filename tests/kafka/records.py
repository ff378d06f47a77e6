"""Writing to and reading from topics, for tests."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from streamer.kafka_clients import open_producer
from streamer.sources.base import Partition, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from schemas.config import KafkaConfig
    from streamer.sources.base import Records, Source

Row = tuple[int, bytes | None, bytes | None]  # offset, key, value


def items(config: KafkaConfig, number: int = 0) -> Partition:
    """A partition of the items topic."""
    return Partition(Stream.ITEMS, config.items_topic, number)


def engagements(config: KafkaConfig, number: int = 0) -> Partition:
    """A partition of the engagements topic."""
    return Partition(Stream.ENGAGEMENTS, config.engagements_topic, number)


def produce(config: KafkaConfig, topic: str, rows: Iterable[Row], **options: Any) -> None:
    """Write rows of (partition, key, value) and wait until the broker has them."""
    producer = open_producer(config, **{"linger_ms": 5} | options)
    try:
        futures = [producer.send(topic, value, key, partition=partition) for partition, key, value in rows]
        producer.flush(60)
        assert all(future.succeeded() for future in futures)
    finally:
        producer.close(timeout=5)


def until(condition: Callable[[], bool], what: str, deadline_s: float = 60) -> None:
    """Call ``condition``, which is to wait a little itself, until it holds."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {deadline_s} s for {what}"


def append(got: dict[Partition, list[Row]], records: Records) -> None:
    """Add to what was read before, of which it must be the continuation."""
    assert len(records.offsets) == len(records.keys) == len(records.values) == len(records)
    rows = got.setdefault(records.partition, [])
    fresh = list(zip(records.offsets, records.keys, records.values, strict=True))
    joint = [offset for offset, _, _ in rows[-1:] + fresh] + [records.next_offset]
    assert all(before < after for before, after in pairwise(joint))
    rows += fresh


def read_to_end(source: Source, max_records: int = 1_000) -> dict[Partition, list[Row]]:
    """All rows up to the ends there are now; the source must not have been read before, or be positioned by seek."""
    got: dict[Partition, list[Row]] = {}
    reached: dict[Partition, int] = {}
    ends = source.end_offsets()

    def step() -> bool:
        for records in source.poll(max_records, 0.2):
            append(got, records)
            reached[records.partition] = records.next_offset
        return all(reached.get(partition, 0) >= end for partition, end in ends.items() if end)

    until(step, f"records up to {ends}")
    return got
