"""Checkpoints of the shards this process owns, and where they go."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import structlog

from indexer.checkpoints import CheckpointInfo, create, expire
from schemas.config import Config
from schemas.errors import StoreError
from streamer.checkpointing import target_of
from streamer.metrics import Metrics
from streamer.shards import Shard

log = structlog.get_logger(__name__)


class Backups:
    """Takes checkpoints on a thread of its own, so that no writer waits for the copying.

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
            StoreError: if the shard is not open, or store or target refuse.
        """
        target = self._target if url is None else target_of(self._config, url)
        with self._one_at_a_time, shard.held_open() as index:
            info = create(index.store, shard.number, target, source=index.source())
            self._metrics.checkpoints.labels(str(shard.number)).inc()
        expire(target, self._config.checkpoints.keep, model_hash=info.store.model_hash, shard=shard.number)
        return info

    def close(self) -> None:
        """Wait for a round that is under way."""
        if self._thread is not None:
            self._thread.join(self._config.writer.shutdown_s)

    def _round(self, shards: list[Shard]) -> None:
        for shard in shards:
            if not shard.ready:
                continue  # its last checkpoint is as good
            try:
                self.take(shard)
            except StoreError as error:
                # The index itself is whole; the next round tries again.
                log.warning("checkpoint_failed", shard=shard.number, error=str(error))
