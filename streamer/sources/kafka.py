"""Events from Kafka: partitions assigned by hand, read from stored offsets, never from what the group committed.

The consumer hands over all it has fetched at once; what a poll does not take stays here. That is not for speed of the
hand-over: kafka-python keeps one fetch in flight per broker and leaves a partition with records at hand out of it, so
that one busy partition read in small steps would wait out ``fetch_max_wait_ms`` of the idle ones again and again.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError, LeaderNotAvailableError, LogTruncationError, OffsetOutOfRangeError

from schemas.errors import BrokerError
from streamer.kafka_clients import (
    asked,
    is_connected,
    open_consumer,
    topic_id,
    with_leader,
)
from streamer.sources.base import Partition, Records
from streamer.sources.kafka_backlog import Backlog
from streamer.sources.kafka_gathering import Gathering
from streamer.sources.kafka_partitions import PartitionLag, find_topics, read_committed, read_lag

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from schemas.config import Config

__all__ = ["KafkaSource", "PartitionLag", "read_lag"]

log = structlog.get_logger(__name__)

_ASK_S: Final = 2.0  # while reading, which the answer must not hold up
_CLOSE_MS: Final = 2_000


class KafkaSource:
    """A :class:`~streamer.sources.base.Source` over the two topics: all their partitions, or those of one shard.

    Holds at most about three fetches (``kafka.fetch_max_bytes`` each, before decompression) in memory. Loss of the
    broker while reading is waited out: polls return nothing until it is back.

    Args:
        config: names broker and topics; ``kafka.on_gap`` says what to do about records removed before they were read.
        shard: read only the partition of this number of each topic.

    Raises:
        BrokerError: if no broker answers within ``kafka.connect_timeout_s``, or a topic or a partition is missing.
        ConfigError: if both streams are given the same topic.
    """

    def __init__(self, config: Config, shard: int | None = None) -> None:
        self._config = config.kafka
        topics = find_topics(config.kafka)
        self._topic_ids = {topic.name: topic.id for topic in topics if topic.id is not None}
        named = {topic.stream.value: f"{topic.name} {topic.id}" for topic in topics if topic.id is not None}
        self._identity = {"kind": "kafka"} | named
        self._partitions = sorted(found for topic in topics for found in topic.partitions(shard))
        self._consumer = open_consumer(config.kafka)
        self._keys = {TopicPartition(p.topic, p.number): p for p in self._partitions}
        self._names = {partition: key for key, partition in self._keys.items()}
        self._consumer.assign(list(self._keys))
        self._backlog = Backlog()
        self._gathering = Gathering(self._consumer, config.kafka)
        self._ends: dict[Partition, int] = {}
        self._missing: set[str] = set()
        self._connected = True
        self._ask_after = float("-inf")

    def partitions(self) -> list[Partition]:
        """Those it reads, as they were when the source was made, sorted."""
        return list(self._partitions)

    def identity(self) -> dict[str, str]:
        """Which topics these are: name and id of each, so that one made anew is told from the old one."""
        return dict(self._identity)

    def seek(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        """Go on reading each partition at the given offset; those not named start at the oldest record kept.

        Where the group has read a partition before that is not named, the records removed since are missing: what was
        built of them is lost. That is a gap as any other.

        Returns:
            Where each partition starts; below the oldest record where a gap is passed over.

        Raises:
            BrokerError: if a position lies outside what the broker holds, or its partition does not exist. It is never
                reset to what happens to be there, since records would be lost or applied twice without a word; only
                with ``kafka.on_gap = "skip"`` does one before the oldest record go on there, and is counted.
        """
        beginnings, ends = self._ask("beginning_offsets"), self._ask("end_offsets")
        self._ends = ends
        for partition, offset in positions.items():
            if partition not in self._names:
                raise BrokerError(
                    f"the stored offset {offset} is of {partition}, which Kafka at {self._config.bootstrap_servers} "
                    "does not have; was the topic created anew? Restore it, or start with an empty store"
                )
            if offset > ends[partition] or (offset < beginnings[partition] and not self._may_skip):
                raise self._out_of_range(partition, offset, beginnings[partition], ends[partition])
        starts = beginnings | dict(positions) | self._begun_anew(beginnings, positions)
        self._backlog.start(starts)
        for partition, start in starts.items():
            self._consumer.seek(self._names[partition], start)
            if start < beginnings[partition]:
                self._skip(partition, beginnings[partition])
        return starts

    def _begun_anew(
        self, beginnings: Mapping[Partition, int], positions: Mapping[Partition, int]
    ) -> dict[Partition, int]:
        """Partitions that are read from their start although the group has read what is gone from there."""
        cut = [partition for partition, at in beginnings.items() if at and partition not in positions]
        if not cut:
            return {}
        committed = read_committed(self._config, [self._names[partition] for partition in cut])
        again = [partition for partition in cut if committed.get(self._names[partition], 0) > 0]
        if again and not self._may_skip:
            partition, group = again[0], self._config.group_id
            raise BrokerError(
                f"topic {partition.topic} partition {partition.number}: its first {beginnings[partition]} records were "
                f"removed since group {group!r} read them, and the index here does not hold them: restore a "
                'checkpoint or bring its directory back, or set kafka.on_gap = "skip" to count them and go on'
            )
        return dict.fromkeys(again, 0)

    def poll(self, max_records: int, timeout_s: float) -> list[Records]:
        """Up to ``max_records`` records in all, shared evenly among the partitions that have some at hand.

        ``Records`` may be empty: then the offset moved past markers of transactions, or records that compaction or an
        aborted transaction removed, and ``next_offset`` says where to. ``lost`` counts the offsets of a gap that
        ``kafka.on_gap = "skip"`` passed over: as many records were removed before they were read, or fewer.

        Raises:
            BrokerError: if records were removed before they were read and that may not be passed over, fail their
                checksum, or are refused to us.
        """
        if not self._backlog.started:
            self.seek({})
        if not self._backlog.ready():
            self._fetch(timeout_s)
        return self._backlog.take(max_records)

    def end_offsets(self) -> dict[Partition, int]:
        """The offset after the last whole transaction of each partition, asked of the broker.

        Of those whose leader is away: what it said last, since an outage must not end the reading, nor hold up that
        of the others.

        Raises:
            BrokerError: if it does not answer and never did.
        """
        if not self._ends:
            self._ends = self._ask("end_offsets")
            return dict(self._ends)
        reachable = with_leader(self._consumer, self._keys)
        if reachable and time.monotonic() >= self._ask_after:
            try:
                self._ends |= self._ask("end_offsets", reachable, _ASK_S)
            except BrokerError as error:
                log.warning("kafka_ends_not_known", error=str(error))
                self._ask_after = time.monotonic() + _ASK_S  # a broker that hangs may take half our time, not all
        return dict(self._ends)

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Stop returning and fetching records of these partitions, without losing position."""
        self._backlog.pause(partitions)
        self._consumer.pause(*(self._names[partition] for partition in partitions))

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Undo :meth:`pause`."""
        self._backlog.resume(partitions)
        self._consumer.resume(*(self._names[partition] for partition in partitions))

    def close(self) -> None:
        """Disconnect; idempotent, takes a few seconds at most."""
        self._consumer.close(timeout_ms=_CLOSE_MS)

    @property
    def _may_skip(self) -> bool:
        return self._config.on_gap == "skip"

    def _fetch(self, timeout_s: float) -> None:
        """Take over all that is fetched. No partition that may be read holds anything here, so memory stays bounded."""
        timeout_ms = int(timeout_s * 1000)
        try:
            fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=sys.maxsize)
            ahead = {partition: self._consumer.position(key, timeout_ms=0) for key, partition in self._keys.items()}
        except OffsetOutOfRangeError as error:
            self._skip_or_refuse(error)
            return
        except LogTruncationError as error:
            raise BrokerError(
                f"{error}: a broker lost records that were read already (an unclean leader election). "
                "The store may hold records the topics no longer have; rebuild it, or accept that and start with "
                "--reset PARTITION=earliest"
            ) from error
        except KafkaError as error:
            if not error.retriable:
                raise BrokerError(f"Kafka at {self._config.bootstrap_servers}: {error} while reading") from error
            log.warning("kafka_read_retried", error=str(error))
            return
        self._gathering.note(sum(map(len, fetched.values())))
        self._note_connection(bool(fetched))
        self._check_topics()
        for partition, after in ahead.items():
            if after is not None:
                self._backlog.add(partition, fetched.get(self._names[partition], []), after)

    def _skip_or_refuse(self, error: OffsetOutOfRangeError) -> None:
        """Go on at the oldest record of each partition whose next ones were removed.

        Raises:
            BrokerError: if that may not be, or the next offset is beyond the end.
        """
        asked_for: dict[TopicPartition, int] = error.args[0]
        try:
            beginnings = self._ask("beginning_offsets", asked_for, _ASK_S)
            ends = self._ask("end_offsets", asked_for, _ASK_S)
        except BrokerError as failure:  # the next fetch will find the same
            log.warning("kafka_read_retried", error=str(failure))
            return
        for key in asked_for:
            partition = self._keys[key]
            offset, beginning, end = self._backlog.fetched_to(partition), beginnings[partition], ends[partition]
            if beginning <= offset <= end:  # there again: a leader that was behind has caught up
                self._consumer.seek(key, offset)
            elif offset < beginning and self._may_skip:
                self._skip(partition, beginning)
            else:
                raise self._out_of_range(partition, offset, beginning, end) from error

    def _skip(self, partition: Partition, beginning: int) -> None:
        offset = self._backlog.fetched_to(partition)
        log.warning(
            "kafka_gap_skipped", partition=str(partition), offset=offset, beginning=beginning, lost=beginning - offset
        )
        self._backlog.skip(partition, beginning)
        self._consumer.seek(self._names[partition], beginning)

    def _note_connection(self, has_records: bool) -> None:  # noqa: FBT001  # one caller
        connected = has_records or is_connected(self._consumer)
        if connected != self._connected:
            self._connected = connected
            event = "kafka_is_back" if connected else "kafka_is_away"
            log.warning(event, bootstrap_servers=self._config.bootstrap_servers)

    def _check_topics(self) -> None:
        """A topic deleted and made again starts at 0: going on at our offset would skip its first records silently.

        Records of the new one may have been returned before this notices, within ``METADATA_AGE_MS``; as nothing of
        the old one can be trusted any more, that does no further harm.
        """
        for topic in {partition.topic for partition in self._partitions}:
            now = topic_id(self._consumer, topic)
            if now is None:
                if topic in self._topic_ids and topic not in self._missing:
                    self._missing.add(topic)
                    log.warning("kafka_topic_is_away", topic=topic, bootstrap_servers=self._config.bootstrap_servers)
                continue
            self._missing.discard(topic)
            if self._topic_ids.setdefault(topic, now) != now:
                raise BrokerError(
                    f"topic {topic!r} at {self._config.bootstrap_servers} was deleted and created anew while it was "
                    "read; what the store holds is from the old one: start with an empty store"
                )

    def _ask(
        self, which: str, keys: Collection[TopicPartition] | None = None, timeout_s: float | None = None
    ) -> dict[Partition, int]:
        limit_s = self._config.request_timeout_s if timeout_s is None else timeout_s
        wanted = list(self._keys if keys is None else keys)

        def ask() -> dict[TopicPartition, int]:
            try:
                found: dict[TopicPartition, int] = getattr(self._consumer, which)(
                    wanted, timeout_ms=int(limit_s * 1000)
                )
            except KeyError as error:  # kafka-python's way to say that a partition has no leader now
                raise LeaderNotAvailableError(str(error)) from error
            return found

        try:
            offsets = asked(self._config, f"asking for {which.replace('_', ' ')}", ask, limit_s)
        except BrokerError as error:
            led = with_leader(self._consumer, wanted)
            away = [str(self._keys[key]) for key in wanted if key not in led]
            if away:
                raise BrokerError(f"{error}; no leader can be reached of {', '.join(away)}") from error
            raise
        return {self._keys[key]: offsets[key] for key in wanted}

    def _out_of_range(self, partition: Partition, offset: int, beginning: int, end: int) -> BrokerError:
        why = (
            "records not yet read were removed, by the topic's retention or by hand; start with --reset "
            f'{partition}=earliest, or set kafka.on_gap = "skip" to count what is lost and go on'
            if offset < beginning
            else "the topic was cut, or deleted and created anew; restore it, start with an empty store, or start with "
            f"--reset {partition}=earliest to read what is there now"
        )
        return BrokerError(
            f"topic {partition.topic} partition {partition.number}: the next offset to read is {offset}, but Kafka at "
            f"{self._config.bootstrap_servers} holds {beginning} to {end}: {why}"
        )
