"""Bounded reading into a generation, outside the live group: to backfill it, or to build it anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from schemas.config import Config
from schemas.errors import UsageError
from streamer.generations import current_generation, is_member, local_shards, make_generation
from streamer.metrics import Metrics
from streamer.opening import open_source, shard_numbers
from streamer.positions import resolve
from streamer.reader import Span
from streamer.shards import Duties, Generation, Shard, Step
from streamer.sources.base import Partition

log = structlog.get_logger(__name__)

_TURN_S: Final = 0.1
_TELL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did, over all shards.

    Attributes:
        applied: records that were new to the generation, dead letters among them.
        repeated: records that it had already; they changed nothing.
        letters: dead letters.
        offsets: where the generation stands now.
    """

    applied: int
    repeated: int
    letters: int
    seconds: float
    offsets: dict[str, int]

    @property
    def per_second(self) -> float:
        """Records read per second."""
        return (self.applied + self.repeated) / max(self.seconds, 1e-9)


def replay(
    config: Config,
    generation: Generation,
    *,
    start: str | None = None,
    stop: str = "latest",
    rate: float | None = None,
    on_progress: Callable[[Step], None] = lambda _: None,
) -> Replayed:
    """Read a part of the source into a generation that no daemon keeps, and end.

    It is read for all shards; by a member of a group for those that the generation in use has here.

    Records that the generation has already are passed over, so a replay that was interrupted is just asked for again.

    Args:
        config: all settings.
        generation: what is written to; made if it is not there.
        start: a place as :func:`streamer.positions.resolve` knows them; None: where the generation stands.
        stop: likewise; records from there on are left out.
        rate: records per second at most, over all shards.
        on_progress: told of each batch, by several threads.

    Raises:
        UsageError: if ``start`` would leave out records between it and where the generation stands.
        FacetstreamError: what ended a shard; run it again to go on.
    """
    began = time.monotonic()
    numbers = _ours(config)
    build = generation.name != current_generation(config.data_dir)
    make_generation(config.data_dir, generation.name, generation.model)  # once, not by each of the shards
    metrics = Metrics()
    shards = []
    for number in numbers:
        partitions = _partitions(config, number)
        first = {} if start is None else resolve(config, partitions, start)
        ends = resolve(config, partitions, "latest")
        # Beyond the end there is nothing to wait for: a replay ends.
        last = {p: min(at, ends[p]) for p, at in resolve(config, partitions, stop).items()}
        if wrong := [p for p in partitions if p in first and first[p] > last[p]]:
            raise UsageError(f"{wrong[0]}: the replay would start at {first[wrong[0]]} and stop at {last[wrong[0]]}")
        span = Span(first, last, rate=None if rate is None else rate / len(numbers))
        shards.append(Shard(number, generation, config, Duties(span, build, on_progress=on_progress), metrics))
    _run(shards, config.writer.shutdown_s)
    return Replayed(
        sum(shard.progress.records for shard in shards),
        sum(shard.repeated for shard in shards),
        sum(shard.progress.letters for shard in shards),
        time.monotonic() - began,
        {name: at for shard in shards for name, at in shard.offsets.items()},
    )


def _ours(config: Config) -> list[int]:
    """Which shards this data directory answers for."""
    here = local_shards(config.data_dir, current_generation(config.data_dir))
    return here if here and is_member(config) else shard_numbers(config)


def _partitions(config: Config, shard: int) -> list[Partition]:
    source = open_source(config, follow=False, shard=shard)
    try:
        return source.partitions()
    finally:
        source.close()


def _run(shards: list[Shard], deadline_s: float) -> None:
    """Until all are at their end, or one fails, or an interrupt: then the others end gracefully."""
    for shard in shards:
        shard.start()
    told_at = time.monotonic()
    try:
        while not all(shard.join(_TURN_S / len(shards)) for shard in shards):
            if any(shard.error is not None for shard in shards):
                break
            if time.monotonic() - told_at > _TELL_S:
                told_at = time.monotonic()
                log.info(
                    "replaying",
                    applied=sum(shard.progress.records for shard in shards),
                    repeated=sum(shard.repeated for shard in shards),
                    lag={name: lag for shard in shards for name, lag in shard.lag().items()},
                )
                for shard in shards:
                    shard.watch()
    finally:
        for shard in shards:
            shard.stop()
        for shard in shards:
            shard.join(deadline_s)
    for shard in shards:
        if shard.error is not None:
            raise shard.error
