"""Which partitions the topics have, and how far a consumer group is in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.protocol.consumer import IsolationLevel

from schemas.errors import ConfigError
from streamer.kafka_clients import asked, open_admin, partition_counts
from streamer.sources.base import Partition, Stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka import KafkaAdminClient

    from schemas.config import Config, KafkaConfig


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a group's commits are behind one partition.

    Attributes:
        beginning, end: offset of the first record kept, and after the last.
        committed: what the group committed last; None if nothing.
    """

    partition: Partition
    beginning: int
    end: int
    committed: int | None

    @property
    def lag(self) -> int:
        """Records not committed yet."""
        return self.end - max(self.beginning, self.committed or 0)


def read_lag(config: Config) -> list[PartitionLag]:
    """The distance of each partition's end from what the group committed, sorted by partition.

    Raises:
        BrokerError: if the broker does not answer, or a topic is missing.
    """
    admin = open_admin(config.kafka)
    try:
        partitions = sorted(partitions_of(admin, config.kafka))
        keys = {partition: TopicPartition(partition.topic, partition.number) for partition in partitions}
        group_id = config.kafka.group_id
        doing = f"asking how far group {group_id!r} is"
        beginnings = asked(config.kafka, doing, lambda: _offsets(admin, keys.values(), OffsetSpec.EARLIEST))
        ends = asked(config.kafka, doing, lambda: _offsets(admin, keys.values(), OffsetSpec.LATEST))
        wanted = {group_id: list(keys.values())}
        group = asked(config.kafka, doing, lambda: admin.list_group_offsets(wanted)[group_id])
        lags = []
        for partition, key in keys.items():
            committed = group[key].offset if key in group else -1
            lags.append(PartitionLag(partition, beginnings[key], ends[key], committed if committed >= 0 else None))
        return lags
    finally:
        admin.close()


def _offsets(admin: KafkaAdminClient, keys: Iterable[TopicPartition], spec: OffsetSpec) -> dict[TopicPartition, int]:
    found: dict[TopicPartition, Any] = admin.list_partition_offsets(
        dict.fromkeys(keys, spec), isolation_level=IsolationLevel.READ_COMMITTED
    )
    return {key: answer.offset for key, answer in found.items()}


def find_partitions(config: KafkaConfig) -> list[Partition]:
    """All partitions of the two topics.

    Raises:
        BrokerError: if the broker does not answer, or a topic is missing.
        ConfigError: if both streams are given the same topic.
    """
    admin = open_admin(config)
    try:
        return partitions_of(admin, config)
    finally:
        admin.close()


def partitions_of(admin: KafkaAdminClient, config: KafkaConfig) -> list[Partition]:
    """As :func:`find_partitions`, with a client that is open already."""
    topics = {config.items_topic: Stream.ITEMS, config.engagements_topic: Stream.ENGAGEMENTS}
    if len(topics) == 1:
        raise ConfigError(
            f"kafka.items_topic and kafka.engagements_topic are both {config.items_topic!r}; give each its own"
        )
    counts = partition_counts(admin, config, list(topics))
    return [Partition(stream, topic, n) for topic, stream in topics.items() for n in range(counts[topic])]
