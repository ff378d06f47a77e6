"""Checkpoints of the shards this process owns, and where they go."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final

import structlog

from indexer.checkpoints import CheckpointInfo, expire, publish, take_image
from schemas.config import Config
from schemas.errors import StoreError
from streamer.checkpointing import target_of
from streamer.metrics import Metrics
from streamer.shards import Shard

log = structlog.get_logger(__name__)


_CLOSE_S: Final = 2.0


class Backups:
    """Takes checkpoints on a thread of its own. Shards are held open for their images only, not for the copying.

    Args:
        config: where, how often, how many are kept.
        metrics: counts them.
    """

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._target = target_of(config)
        self._at = time.monotonic()
        self._one_at_a_time = threading.Lock()
        self._ending = threading.Event()
        self._newest: dict[int, CheckpointInfo] = {}  # of each shard at the configured target, by this process
        self._thread: threading.Thread | None = None

    def turn(self, shards: Iterable[Shard]) -> None:
        """Begin a round when it is due."""
        interval_s = self._config.checkpoints.interval_s
        if not interval_s or time.monotonic() - self._at < interval_s:
            return
        if self._thread is None or not self._thread.is_alive():
            self._at = time.monotonic()
            self._thread = threading.Thread(target=self._round, args=(list(shards),), name="backup", daemon=True)
            self._thread.start()

    def take(self, shard: Shard, url: str | None = None) -> CheckpointInfo:
        """One checkpoint of a shard, now; older ones than ``checkpoints.keep`` go.

        Raises:
            StoreError: if the shard is not open, store or target refuse, or this process ends.
        """
        target = self._target if url is None else target_of(self._config, url)
        with self._one_at_a_time:
            with shard.held_open() as index:
                image = take_image(index.store, shard.number)
            info = publish(image, target, self._ending)
            if url is None:
                self._newest[shard.number] = info
            self._metrics.checkpoints.labels(str(shard.number)).inc()
        expire(target, self._config.checkpoints.keep, model_hash=info.store.model_hash, shard=shard.number)
        return info

    def close(self) -> None:
        """Cut a round that is under way short, between two files; one that copies a large one is not waited for."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def _round(self, shards: list[Shard]) -> None:
        for shard in shards:
            if self._ending.is_set():
                return
            try:
                if shard.ready and not self._is_taken(shard):
                    self.take(shard)
            except StoreError as error:
                if self._ending.is_set():
                    log.info("checkpoint_cut_short", shard=shard.number)
                    return
                # The index itself is whole; the next round tries again.
                log.warning("checkpoint_failed", shard=shard.number, error=str(error))

    def _is_taken(self, shard: Shard) -> bool:
        """Whether nothing was applied since the last checkpoint: one more would push an older one out for nothing."""
        last = self._newest.get(shard.number)
        if last is None or last.store.generation != shard.generation.name:
            return False
        with shard.held_open() as index:
            return (index.store.offsets(), index.source()) == (last.offsets, last.source)
