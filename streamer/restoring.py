"""A shard that comes here begins from its newest checkpoint where that is of more use than what is here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from indexer.checkpoints import CheckpointInfo, list_, restore_newest
from indexer.store import Store, is_there, now_ms, store_path
from schemas.config import Config
from streamer.checkpointing import target_of
from streamer.generations import store_meta
from streamer.positions import resolve
from streamer.sources.base import Source

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without

log = structlog.get_logger(__name__)

_CATCH_UP_RECORDS: Final = 200_000  # a store that is further behind than that is replaced by a checkpoint


def restore_if_of_use(config: Config, generation: str, model: FrozenModel, shard: int, source: Source) -> None:
    """Bring the newest checkpoint here, if there is one and what is here is nothing, or of no use any more.

    What was here is moved aside, never removed.

    Raises:
        StoreError: if what is here, or the checkpoint, cannot be read.
        BrokerError: if the source does not answer.
    """
    path = store_path(config.data_dir, generation, shard)
    target = target_of(config)
    wanted = store_meta(model, generation, config.counters.half_lives_s)
    mine = source.identity()

    def of_use(info: CheckpointInfo) -> bool:
        # One of a topic that was since deleted and created anew has offsets that mean nothing now.
        return all(mine.get(name, told) == told for name, told in info.source.items())

    if is_there(path):
        best = next(filter(of_use, list_(target, model_hash=wanted.model_hash, shard=shard)), None)
        if best is None or not _outdated(config, path, best, source):
            return
        aside = path.with_name(f"{path.name}.outdated-{now_ms()}")
        path.rename(aside)
        log.warning("shard_outdated", shard=shard, generation=generation, moved_to=str(aside))
    began = time.monotonic()
    found = restore_newest(target, wanted, shard, path, accept=of_use)
    if found is not None:
        seconds = round(time.monotonic() - began, 3)
        log.info("restored", shard=shard, generation=generation, offsets=found.offsets, seconds=seconds)


def _outdated(config: Config, path: Path, best: CheckpointInfo, source: Source) -> bool:
    """Whether a checkpoint should replace the store here: another owned the shard for long.

    That is: the checkpoint is ahead in every partition, and either far, or the store's next records are gone.
    """
    with Store.open(path) as store:
        stored = store.offsets()
    partitions = source.partitions()
    ahead = [best.offsets.get(str(partition), 0) - stored.get(str(partition), 0) for partition in partitions]
    if min(ahead) < 0 or sum(ahead) == 0:
        return False
    oldest = resolve(config, partitions, "earliest")
    gone = any(stored.get(str(partition), 0) < at for partition, at in oldest.items())
    return gone or sum(ahead) > _CATCH_UP_RECORDS
