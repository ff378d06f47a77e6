"""Snapshots of the shards this process serves, published beside their writers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import structlog

from indexer.index import Index
from indexer.snapshots import Publisher, SnapshotFollower, list_, target_at
from indexer.store import now_ms
from schemas.config import Config
from schemas.errors import FacetstreamError, StoreError
from schemas.snapshot import SnapshotInfo
from streamer.metrics import Metrics
from streamer.shards import Shard

log = structlog.get_logger(__name__)

Kind = Literal["full", "delta"]

_AGAIN_S: Final = 30.0
"""After a full snapshot the next one waits for at least this long, whatever has changed, or if it failed; and for so
many times as long as the last one took, which bounds what it costs the writer:"""
_REST: Final = 20
_CLOSE_S: Final = 2.0


@dataclass(slots=True)
class _Published:
    """One shard's publisher.

    Attributes:
        index: what it publishes; a shard that is opened anew is another.
        tried_at: monotonic seconds of the last attempt at a full snapshot; took_s: how long it took.
        moved: what rebalancing had moved then.
        resumed: whether it was tried to go on from what is published.
    """

    index: Index
    publisher: Publisher
    tried_at: float = float("-inf")
    took_s: float = 0.0
    moved: int = 0
    resumed: bool = False


class Publishing:
    """Publishes deltas on a thread of its own, and full snapshots on another, so that no writer waits for a disk.

    Args:
        config: where, how often, how many are kept.
        metrics: counts and times them.
    """

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._shards: dict[int, _Published] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._current_at: dict[int, float] = {}

    def start(self, shards: Callable[[], Iterable[Shard]]) -> None:
        """Begin, if it is enabled. ``shards`` tells which are served now."""
        if not self._config.snapshots.enabled:
            return
        for name, interval_s, turn in (
            ("deltas", self._config.snapshots.delta_s, self._delta_turn),
            ("fulls", min(1.0, self._config.snapshots.delta_s), self._full_turn),
        ):
            thread = threading.Thread(target=self._loop, args=(shards, interval_s, turn), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()

    def close(self) -> None:
        """Wait a little for what is under way; what is left half-made the next publication removes."""
        self.stop()
        for thread in self._threads:
            thread.join(_CLOSE_S)

    def take(self, shard: Shard, kind: Kind) -> SnapshotInfo | None:
        """Publish now; None if nothing changed since the last delta.

        Raises:
            StoreError: if the shard is not open, or the target refuses.
        """
        found = self._of(shard)
        began = time.monotonic()
        if kind == "full" or found.publisher.current is None:
            pipeline = shard.pipeline
            found.tried_at, found.moved = began, 0 if pipeline is None else pipeline.progress.moved
            info: SnapshotInfo | None = found.publisher.full()
            found.took_s = time.monotonic() - began
        else:
            info = found.publisher.delta()
        self._current_at[shard.number] = began
        if info is not None:
            metrics, name = self._metrics, str(shard.number)
            metrics.snapshots.labels(name, info.kind).inc()
            metrics.snapshot_seconds.labels(info.kind).observe(time.monotonic() - began)
            metrics.snapshot_bytes.labels(name, info.kind).set(info.size)
        return info

    def _of(self, shard: Shard) -> _Published:
        with self._lock, shard.held_open() as index:
            found = self._shards.get(shard.number)
            if found is not None and found.index is index:
                return found
            config = self._config
            publisher = Publisher(
                index.view,
                shard.number,
                target_at(url_of(config)),
                config.snapshots.keep,
                partial(_settle, shard, index),
            )
            self._shards[shard.number] = _Published(index, publisher)
            self._current_at[shard.number] = time.monotonic()
            self._metrics.snapshot_age.labels(str(shard.number)).set_function(
                lambda: time.monotonic() - self._current_at[shard.number]
            )
            return self._shards[shard.number]

    # -- on threads of its own -------------------------------------------------------------------------------------

    def _loop(self, shards: Callable[[], Iterable[Shard]], interval_s: float, turn: Callable[[Shard], None]) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + interval_s, time.monotonic())
            for shard in list(shards()):
                # Before it has caught up, what is published already may be ahead of it.
                if not shard.ready or not shard.owned or self._stop.is_set():
                    continue
                try:
                    turn(shard)
                except FacetstreamError as error:
                    # The index itself is whole; the next turn tries again.
                    log.warning("snapshot_failed", shard=shard.number, error=str(error))
                except Exception:  # a defect must not end publication silently
                    log.exception("snapshot_failed", shard=shard.number)

    def _delta_turn(self, shard: Shard) -> None:
        if self._of(shard).publisher.current is not None:
            self.take(shard, "delta")

    def _full_turn(self, shard: Shard) -> None:
        found = self._of(shard)
        if not found.resumed:
            found.resumed = True
            self._resume(shard, found)
        if self._full_is_due(shard, found):
            self.take(shard, "full")

    def _resume(self, shard: Shard, found: _Published) -> None:
        """Go on from the full snapshot that is published, if it is known what changed since."""
        target = target_at(url_of(self._config))
        if target.local("") is None:
            return  # to fetch it takes as long as to publish a new one
        try:
            reader = SnapshotFollower(str(target)).published(found.index.view.meta, shard.number)
            if reader is None:
                return
            found.publisher.go_on(reader)
        except FacetstreamError as error:
            log.info("snapshot_not_resumed", shard=shard.number, reason=str(error))
            return
        found.tried_at = time.monotonic() - (now_ms() - reader.info.created_at_ms) / 1_000
        log.info("snapshot_resumed", shard=shard.number, snapshot=f"{reader.info.folder}/{reader.info.full}")

    def _full_is_due(self, shard: Shard, found: _Published) -> bool:
        config, publisher, pipeline = self._config.snapshots, found.publisher, shard.pipeline
        since = time.monotonic() - found.tried_at
        if since < max(_AGAIN_S, _REST * found.took_s) or pipeline is None:
            return False
        if publisher.current is None:
            return True
        view = found.index.view
        moved = pipeline.progress.moved - found.moved
        share = max(publisher.changed_share(), moved / max(1, view.totals.items_live * view.meta.facets))
        return share > config.full_after_share or (share > 0 and since > config.full_s)


def _settle(shard: Shard, index: Index) -> None:
    """Before readers are shown what the writer may not have synced yet, and another owner may publish beside us."""
    if not shard.owned:
        raise StoreError(f"shard {shard.number} may be another process's now: nothing is published")
    with shard.held_open() as still:
        if still is not index:
            raise StoreError(f"shard {shard.number} was closed and opened again meanwhile: nothing is published")
        index.store.sync()


def url_of(config: Config) -> str:
    """Where snapshots are published: ``snapshots.url``, else below the data directory."""
    return config.snapshots.url or str(config.data_dir / "snapshots")


def listed(url: str) -> list[dict[str, Any]]:
    """What commands print of the snapshots there are, oldest first.

    Raises:
        ConfigError: if nothing serves the URL.
        StoreError: if it refuses.
    """
    return [shown(info, current=current) for info, current in list_(target_at(url))]


def shown(info: SnapshotInfo, *, current: bool = True) -> dict[str, Any]:
    """What commands print of a snapshot."""
    return {
        "snapshot": f"{info.folder}/{info.full}",
        "kind": info.kind,
        "sequence": info.sequence,
        "shard": info.shard,
        "generation": info.store.generation,
        "model_hash": info.store.model_hash,
        "created_at_ms": info.created_at_ms,
        "offsets": dict(info.offsets),
        "items_live": info.items_live,
        "bytes": info.size,
        "current": current,
    }


def shown_all(infos: Sequence[SnapshotInfo | None]) -> dict[str, Any]:
    """What publishing several shards came to."""
    return {"snapshots": [shown(info) for info in infos if info is not None]}
