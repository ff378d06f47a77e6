"""Which partitions the topics have, and how far a consumer group is in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.protocol.consumer import IsolationLevel

from schemas.errors import BrokerError, ConfigError
from streamer.kafka_clients import asked, open_admin, topic_facts
from streamer.sources.base import Partition, Stream

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from uuid import UUID

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


@dataclass(frozen=True, slots=True)
class Topic:
    """One of the two topics.

    Attributes:
        count: its partitions.
        id: tells it from an earlier one of the same name; None if the broker does not say.
    """

    stream: Stream
    name: str
    count: int
    id: UUID | None

    def partitions(self, shard: int | None = None) -> list[Partition]:
        """All, or the one of a shard.

        Raises:
            BrokerError: if it has none of that number.
        """
        if shard is None:
            return [Partition(self.stream, self.name, number) for number in range(self.count)]
        if not 0 <= shard < self.count:
            raise BrokerError(f"topic {self.name!r} has {self.count} partitions, none of shard {shard}")
        return [Partition(self.stream, self.name, shard)]


def find_topics(config: KafkaConfig) -> list[Topic]:
    """The two topics.

    Raises:
        BrokerError: if the broker does not answer, or a topic is missing.
        ConfigError: if both streams are given the same topic.
    """
    admin = open_admin(config)
    try:
        return topics_of(admin, config)
    finally:
        admin.close()


def topics_of(admin: KafkaAdminClient, config: KafkaConfig) -> list[Topic]:
    """As :func:`find_topics`, with a client that is open already."""
    streams = {config.items_topic: Stream.ITEMS, config.engagements_topic: Stream.ENGAGEMENTS}
    if len(streams) == 1:
        raise ConfigError(
            f"kafka.items_topic and kafka.engagements_topic are both {config.items_topic!r}; give each its own"
        )
    return [
        Topic(streams[facts.name], facts.name, facts.partitions, facts.id)
        for facts in topic_facts(admin, config, list(streams))
    ]


def partitions_of(admin: KafkaAdminClient, config: KafkaConfig) -> list[Partition]:
    """All partitions of the two topics; raises as :func:`find_topics`."""
    return [partition for topic in topics_of(admin, config) for partition in topic.partitions()]


def shard_count(config: Config) -> int:
    """How many shards there are: the number of partitions of the items topic.

    Raises:
        BrokerError: if the broker does not answer, or a topic is missing.
        ConfigError: if the two topics have not the same number of partitions.
    """
    items, engagements = find_topics(config.kafka)
    if items.count != engagements.count:
        raise ConfigError(
            f"topic {items.name!r} has {items.count} partitions, but {engagements.name!r} has {engagements.count}: "
            "they must be co-partitioned, with as many partitions and the same keys, so that an item and its "
            "engagements meet in one shard; create one of them anew"
        )
    return items.count


def read_committed(config: KafkaConfig, keys: Collection[TopicPartition]) -> dict[TopicPartition, int]:
    """What the group committed of some partitions; those of which it committed nothing are left out.

    Raises:
        BrokerError: if the broker does not answer.
    """
    admin = open_admin(config)
    try:
        wanted = {config.group_id: list(keys)}
        doing = f"asking what group {config.group_id!r} has read"
        found = asked(config, doing, lambda: admin.list_group_offsets(wanted)[config.group_id])
        return {key: found[key].offset for key in keys if key in found and found[key].offset >= 0}
    finally:
        admin.close()
