"""Where a shard reads from and where its dead letters go, as configured."""

from __future__ import annotations

from schemas.config import Config
from schemas.errors import UsageError
from streamer.dead_letters import DeadLetterSink, FileDeadLetters, NoDeadLetters, TopicDeadLetters
from streamer.generations import dead_letter_path
from streamer.sources.base import Source, Stream
from streamer.sources.eventlog import EventLogSource
from streamer.sources.kafka import KafkaSource
from streamer.sources.kafka_partitions import shard_count


def open_source(config: Config, *, follow: bool, shard: int | None = None) -> Source:
    """The configured source: of one shard, or of all.

    Raises:
        UsageError: if an event log is wanted and not named or not there.
        BrokerError: if Kafka is wanted and does not answer or lacks a topic.
    """
    if config.source.kind == "kafka":
        return KafkaSource(config, shard)
    if config.source.path is None:
        raise UsageError("source.kind is eventlog but source.path is not set; give --events DIRECTORY")
    limit = config.limits.max_record_bytes
    return EventLogSource(config.source.path, follow=follow, max_line_bytes=limit, shard=shard)


def open_sink(config: Config, generation: str, shard: int = 0, *, build: bool = False) -> DeadLetterSink:
    """Where a shard's dead letters go: the topic beside Kafka, else a file beside the store."""
    if config.source.kind == "kafka":
        return NoDeadLetters() if build else TopicDeadLetters(config.kafka, shard)
    return FileDeadLetters(dead_letter_path(config.data_dir, generation, shard))


def shard_numbers(config: Config) -> list[int]:
    """All shards that the source has: one for each partition of the items.

    Raises:
        ConfigError, UsageError: if the engagements are not partitioned as the items are.
        BrokerError: if the broker does not answer, or a topic is missing.
    """
    if config.source.kind == "kafka":
        return list(range(shard_count(config)))
    source = open_source(config, follow=False)
    try:
        partitions = source.partitions()
    finally:
        source.close()
    numbers = {stream: {p.number for p in partitions if p.stream is stream} for stream in Stream}
    items, engagements = numbers[Stream.ITEMS], numbers[Stream.ENGAGEMENTS]
    if items and engagements and items != engagements:
        raise UsageError(
            f"the event log has {len(items)} partitions of items and {len(engagements)} of engagements; "
            "engagements must be partitioned as the items are: as many, and each in the partition of its item"
        )
    return sorted(items | engagements)
