"""A bounded part of the topics as arrays, for training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from schemas.errors import BrokerError, UsageError
from streamer.positions import resolve
from streamer.sources.base import clip
from streamer.sources.kafka import KafkaSource
from streamer.training_data import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from model_runtime.training.data import TrainingLog
    from schemas.config import Config
    from streamer.sources.base import Partition

_POLL: Final = 8_192
_WAIT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class TopicSpan:
    """What of the topics is learned from.

    Attributes:
        config: names broker and topics.
        start: a place as :func:`streamer.positions.resolve` knows them.
        stop: likewise; records from there on are left out.
    """

    config: Config
    start: str = "earliest"
    stop: str = "latest"

    def __str__(self) -> str:
        kafka = self.config.kafka
        return f"{kafka.items_topic} and {kafka.engagements_topic} from {self.start} to {self.stop}"


def read_training_topics(
    span: TopicSpan, until_ms: int | None = None, *, progress: Callable[[int], None] | None = None
) -> TrainingLog:
    """Read a span of both topics, outside of any group; it ends where they end now.

    One partition is read after the other, so that the same span gives the same arrays, whatever the broker sends first.

    Args:
        span: which records.
        until_ms: leave out every event at or after this moment, epoch milliseconds.
        progress: told how many records were just read.

    Returns:
        As :func:`streamer.training_data.read_training_log`.

    Raises:
        UsageError: a partition's start lies behind its stop, or before the oldest record that is kept.
        BrokerError: the broker does not answer, a topic is missing, records were removed while they were read, or
            nothing came for ``kafka.connect_timeout_s``.
    """
    source = KafkaSource(span.config)
    try:
        partitions = source.partitions()
        starts = resolve(span.config, partitions, span.start)
        ends = _ends(span, source.end_offsets())
        kept = resolve(span.config, partitions, "earliest")
        if gone := [partition for partition in partitions if starts[partition] < kept[partition]]:
            raise UsageError(
                f"{gone[0]}: training would start at {starts[gone[0]]}, but the records before {kept[gone[0]]} were "
                "removed; give --from earliest, or a later place"
            )
        if wrong := [partition for partition in partitions if starts[partition] > ends[partition]]:
            raise UsageError(
                f"{wrong[0]}: training would start at {starts[wrong[0]]} and stop at {ends[wrong[0]]}; "
                "give an earlier --from or a later --to"
            )
        source.seek(starts)
        source.pause(partitions)
        reading = Reading(until_ms)
        for partition in partitions:
            if starts[partition] < ends[partition]:
                source.resume([partition])
                _read(source, partition, (starts[partition], ends[partition]), span, reading, progress)
                source.pause([partition])
        return reading.log()
    finally:
        source.close()


def _ends(span: TopicSpan, latest: Mapping[Partition, int]) -> dict[Partition, int]:
    """Beyond what is there now nothing is waited for."""
    return {partition: min(at, latest[partition]) for partition, at in resolve(span.config, latest, span.stop).items()}


def _read(
    source: KafkaSource,
    partition: Partition,
    bounds: tuple[int, int],
    span: TopicSpan,
    reading: Reading,
    progress: Callable[[int], None] | None,
) -> None:
    limit_s = span.config.kafka.connect_timeout_s
    (at, end), heard = bounds, time.monotonic()
    while at < end:
        polled = source.poll(_POLL, _WAIT_S)
        if polled:
            heard = time.monotonic()
        elif time.monotonic() - heard > limit_s:
            raise BrokerError(
                f"Kafka at {span.config.kafka.bootstrap_servers} sent nothing of {partition} for {limit_s:g} s, where "
                f"{end - at} records are missing; see whether the broker is well, then train again"
            )
        for records in polled:
            kept, _ = clip(records, 0, end)
            reading.take(kept)
            at = records.next_offset
            if progress is not None:
                progress(len(kept))
