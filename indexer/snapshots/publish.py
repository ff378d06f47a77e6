"""Publishing one shard: full snapshots, and deltas of the newest."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from indexer.checkpoints.target import CheckpointTarget
from indexer.failpoints import failpoint
from indexer.snapshots import image, layout
from indexer.snapshots.changes import Changes
from indexer.snapshots.delta import Base, First, Written, start_of_next, take_segment
from indexer.snapshots.full import FullImage, write_full
from indexer.snapshots.reader import SnapshotReader
from indexer.snapshots.resume import base_of, changed_since
from indexer.snapshots.retention import GRACE_S, remove_old
from indexer.store import now_ms
from indexer.view import LiveView
from schemas.checkpoints import CheckpointFile
from schemas.errors import StoreError
from schemas.snapshot import IndexPointer, ShardPointer, SnapshotInfo

log = structlog.get_logger(__name__)

_LINGER_S: Final = 10.0
"""Segments that a later one took the place of stay this long, for readers that have just read of them."""


@dataclass(slots=True)
class _Published:
    """A full snapshot, and what is needed to publish deltas of it."""

    info: SnapshotInfo
    base: Base
    changes: Changes
    delta: SnapshotInfo | None = None
    segments: list[Written] = field(default_factory=list)
    replaced: list[tuple[float, str]] = field(default_factory=list)


class Publisher:
    """Publishes one shard of one generation. Any thread may call it; a delta may be published beside a full snapshot.

    The writer is kept out of the view for milliseconds at a time, and may plan and write its next batch meanwhile.
    It begins with a full snapshot, or goes on from one that is published: see :meth:`go_on`.

    Args:
        view: of the shard.
        shard: its number.
        target: where to.
        keep: full snapshots kept, with their deltas.
        before_showing: called before readers are shown anything: makes what was taken durable in the store, and raises
            where the shard is another's by now.

    Attributes:
        held_s: for how long the writer was kept out at once, last time.
    """

    def __init__(
        self,
        view: LiveView,
        shard: int,
        target: CheckpointTarget,
        keep: int,
        before_showing: Callable[[], None] = lambda: None,
    ) -> None:
        self.held_s = 0.0
        self._before_showing = before_showing
        self._view = view
        self._shard = shard
        self._target = target
        self._keep = keep
        self._now: _Published | None = None
        self._announced = False
        self._one_full = threading.Lock()
        self._lock = threading.Lock()

    @property
    def current(self) -> SnapshotInfo | None:
        """Manifest of the full snapshot that deltas belong to; None before the first."""
        return None if self._now is None else self._now.info

    def changed_share(self) -> float:
        """Share of the items that changed since the full snapshot; 1 where there is none."""
        now = self._now
        return 1.0 if now is None else now.changes.items_changed() / max(1, now.info.items_live)

    def full(self) -> SnapshotInfo:
        """Publish a full snapshot; readers turn to it, with a first delta that brings it up to now.

        Raises:
            StoreError: if the target refuses; readers stay with what they have.
        """
        with self._one_full:
            failpoint("snapshot.before")
            began = time.perf_counter()
            with self._held():
                taken, changes = FullImage.take(self._view), Changes()
                self._view.watchers.append(changes)
            held_s = self.held_s
            try:
                published = self._write(taken, changes)
                with self._lock:
                    self._delta(published)
                    self._turn_to(published)
            except BaseException:
                self._unwatch(changes)
                raise
            finally:
                taken.release()
            self._announce(published.info)
            failpoint("snapshot.published")
            remove_old(self._target, published.info.folder, published.info.full, self._keep)
        log.info(
            "snapshot_published",
            snapshot=f"{published.info.folder}/{published.info.full}",
            target=str(self._target),
            items=published.info.items_live,
            bytes=published.info.size,
            held_ms=round(held_s * 1e3, 1),
            ms=round((time.perf_counter() - began) * 1e3, 1),
        )
        return published.info

    def delta(self) -> SnapshotInfo | None:
        """Publish what changed since the full snapshot; None if nothing did since the last delta.

        Raises:
            StoreError: as :meth:`full`.
        """
        with self._lock:
            if self._now is None:
                return None
            now = self._now.info
            if layout.current_full(self._target, now.folder) != now.full:
                self._unwatch(self._now.changes)
                self._now = None
                raise StoreError(f"{self._target} has lost {now.folder}/{now.full}: the next is published in full")
            info = self._delta(self._now)
            if not self._announced:  # it goes on from another process's full snapshot
                self._announce(self._now.info)
            return info

    def go_on(self, reader: SnapshotReader) -> None:
        """Publish deltas of a full snapshot that another process made of this store.

        Args:
            reader: shows what is published.

        Raises:
            UsageError: if it is not known what changed since.
        """
        changes = Changes()
        with self._held():
            published = self._view.positions == reader.at.offsets
            changes.period = reader.at.sequence + (0 if published else 1)
            changes(*changed_since(self._view, reader))
            changes.period = reader.at.sequence + 1
            self._view.watchers.append(changes)
        delta = reader.at if reader.at.kind == "delta" else None
        with self._lock:
            self._now = _Published(reader.info, base_of(reader), changes, delta)

    def close(self) -> None:
        """Stop watching the view."""
        if self._now is not None:
            self._unwatch(self._now.changes)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The writer leaves the view as it is; requests are answered."""
        with self._view.lock.shared():
            began = time.perf_counter()
            yield
            self.held_s = time.perf_counter() - began

    def _unwatch(self, changes: Changes) -> None:
        with self._view.lock:
            if changes in self._view.watchers:
                self._view.watchers.remove(changes)

    def _write(self, taken: FullImage, changes: Changes) -> _Published:
        made_at = now_ms()
        info = self._info("full", layout.new_name(made_at), 0, taken.at, {}, made_at)
        folder = f"{info.folder}/{info.full}"
        files = write_full(taken, self._target, folder)
        info = info.model_copy(update={"files": files})
        failpoint("snapshot.written")
        self._target.write(f"{folder}/{layout.MANIFEST}", info.model_dump_json().encode())
        self._target.settle(info.folder)
        return _Published(info, Base.of(taken), changes)

    def _info(
        self, kind: str, full: str, sequence: int, at: image.At, files: dict[str, CheckpointFile], made_at: int
    ) -> SnapshotInfo:
        return SnapshotInfo.model_validate(
            {
                "kind": kind,
                "store": self._view.meta,
                "shard": self._shard,
                "full": full,
                "sequence": sequence,
                "created_at_ms": made_at,
                "files": files,
                **at.facts,
            }
        )

    def _delta(self, to: _Published) -> SnapshotInfo | None:
        published = 0 if to.delta is None else to.delta.sequence
        if not to.changes.any_since(published):
            return None
        failpoint("delta.before")

        last = to.delta if to.delta is not None and to.segments else to.info
        known = First(last.ordinals, last.labels)
        keep, after, first = start_of_next(to.segments, to.changes, published, known)
        with self._held():
            segment = take_segment(self._view, to.base, to.changes, after, first)
            period, at = to.changes.next_period(), image.at(self._view)
        data = segment.encode()
        rows = len(segment.ordinals) + len(segment.counted)
        written = Written(after, first, rows, f"delta-{after:08d}-{period:08d}.npz")
        folder = f"{to.info.folder}/{to.info.full}"
        self._before_showing()
        self._target.write(f"{folder}/{written.name}", data)
        present = {} if to.delta is None else to.delta.files
        kept = to.segments[:keep]
        files = {each.name: present[each.name] for each in kept}
        files[written.name] = CheckpointFile(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        info = self._info("delta", to.info.full, period, at, files, now_ms())
        self._target.write(f"{folder}/{layout.DELTA}", info.model_dump_json().encode())
        failpoint("delta.published")
        to.replaced += [(time.monotonic(), f"{folder}/{each.name}") for each in to.segments[keep:]]
        to.segments, to.delta = [*kept, written], info
        self._sweep(to)
        return info

    def _sweep(self, to: _Published) -> None:
        due = time.monotonic() - _LINGER_S
        for _, path in [row for row in to.replaced if row[0] < due]:
            self._target.remove(path)
        to.replaced = [row for row in to.replaced if row[0] >= due]

    def _turn_to(self, published: _Published) -> None:
        """Make readers turn to a full snapshot."""
        self._before_showing()
        before, self._now = self._now, None
        if before is not None:
            self._unwatch(before.changes)
        # If this fails nobody knows what readers read: with no full snapshot to go on from, the next one is made first.
        pointer = ShardPointer(full=published.info.full)
        self._target.write(f"{published.info.folder}/{layout.POINTER}", pointer.model_dump_json().encode())
        self._now = published

    def _announce(self, info: SnapshotInfo) -> None:
        """Make readers turn to this index version, once; another may take over later."""
        target = self._target
        before = layout.current_index(target)
        if before is None or (not self._announced and before != info.index):
            has, needs = (set(_published(target, index)) for index in (info.index, before or info.index))
            if needs <= has:  # else whoever publishes the last of its shards does it
                target.write(layout.POINTER, IndexPointer(index=info.index).model_dump_json().encode())
        self._announced = True
        for name in target.files(""):
            if name.startswith(".") and target.age_s(name) > GRACE_S:  # others may be writing theirs
                target.remove(name)


def _published(target: CheckpointTarget, index: str) -> list[int]:
    """Shards of an index version that have a full snapshot."""
    return [
        shard
        for shard in layout.shards(target, index)
        if layout.current_full(target, layout.shard_folder(index, shard)) is not None
    ]
