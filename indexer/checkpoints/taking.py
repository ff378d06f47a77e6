"""Taking a checkpoint."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog

from indexer.checkpoints.target import CheckpointTarget
from indexer.failpoints import failpoint
from indexer.store import Store, now_ms
from schemas.checkpoints import CheckpointFile, CheckpointInfo
from schemas.errors import StoreError

log = structlog.get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

WORKERS: Final = 4  # files hashed or copied at once; both leave the interpreter to others


@dataclass(frozen=True, slots=True)
class Image:
    """A store as it was at one moment, beside the store: hard links, which :func:`publish` copies and removes.

    Attributes:
        store: path of the store it was taken of.
        path: where it lies.
        shard, epoch: as :func:`take_image` was told.
        paused_s: how long taking it kept writers waiting.
    """

    store: Path
    path: Path
    shard: int
    epoch: int
    paused_s: float


def create(store: Store, shard: int, target: CheckpointTarget, *, epoch: int = 0) -> CheckpointInfo:
    """Copy a store to the target as it is at one moment; what the target has already is not copied again.

    Arguments and errors are those of :func:`take_image` and :func:`publish`, which whoever may have to close the store
    meanwhile calls one after the other.
    """
    return publish(take_image(store, shard, epoch=epoch), target)


def take_image(store: Store, shard: int, *, epoch: int = 0) -> Image:
    """Take an image of a store, which must stay open meanwhile: for some milliseconds.

    Any thread may call it beside the writer, if no other image of the store is there. Other threads stand still while
    RocksDB flushes what is in memory (see :meth:`Store.checkpoint`).

    Args:
        store: open for writing.
        shard: its number.
        epoch: group generation, informative.

    Raises:
        StoreError: if the disk refuses; nothing is left behind then.
    """
    failpoint("checkpoint.before")
    began = time.perf_counter()
    aside = store.path.with_name(f".{store.path.name}.checkpoint")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed here
    try:
        store.checkpoint(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return Image(store.path, aside, shard, epoch, time.perf_counter() - began)


def publish(image: Image, target: CheckpointTarget, stopped: threading.Event | None = None) -> CheckpointInfo:
    """Copy an image to the target and remove it. The store may be closed, or go on, meanwhile.

    Args:
        image: what to copy.
        target: where to.
        stopped: when it is set no further file is copied.

    Raises:
        StoreError: if the image or the target refuses, or ``stopped`` was set; nothing is published then.
    """
    began = time.perf_counter()
    work = _Work(target, stopped or threading.Event())
    try:
        failpoint("checkpoint.linked")
        # Before the image is opened to read it, which leaves files that are not the store's.
        paths = sorted(path for path in image.path.iterdir() if path.name not in {"LOCK", "LOG", "IDENTITY"})
        with Store.open_secondary(image.path) as copy:
            meta, offsets, source = copy.meta(), copy.offsets(), copy.source()
        info = CheckpointInfo(
            store=meta,
            shard=image.shard,
            offsets=offsets,
            source=source,
            created_at_ms=now_ms(),
            epoch=image.epoch,
            files={},
        )
        files = work.hash(paths, info.folder)
        info = info.model_copy(update={"files": {path.name: file for path, file in zip(paths, files, strict=True)}})
        copied = work.copy_missing(paths, files, info.folder)
        failpoint("checkpoint.copied")
        target.write(f"{info.name}.json", info.model_dump_json(indent=1).encode())
        # Whoever expired old checkpoints meanwhile could not know that this one needs their files.
        copied += work.copy_missing(paths, files, info.folder)
    except OSError as error:
        raise StoreError(f"cannot take a checkpoint of {image.store}: {error}") from error
    finally:
        shutil.rmtree(image.path, ignore_errors=True)
    failpoint("checkpoint.published")
    log.info(
        "checkpoint_created",
        checkpoint=info.name,
        target=str(target),
        bytes=info.size,
        copied=copied,
        paused_ms=round(image.paused_s * 1e3, 1),
        ms=round((time.perf_counter() - began + image.paused_s) * 1e3, 1),
    )
    return info


@dataclass(frozen=True, slots=True)
class _Work:
    """Hashing and copying, file by file until ``stopped``."""

    target: CheckpointTarget
    stopped: threading.Event

    def hash(self, paths: list[Path], folder: str) -> list[CheckpointFile]:
        """What each file holds; tables that a former checkpoint saw are not read again."""
        known = self.target.hashes.get(folder, {})
        marks = []
        for path in paths:
            stat = path.stat()
            marks.append((path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
        digests = self._each(lambda at: known.get(marks[at]) or _digest(paths[at]), range(len(paths)))
        self.target.hashes[folder] = {
            mark: digest for mark, digest in zip(marks, digests, strict=True) if mark[0].endswith(".sst")
        }
        return [CheckpointFile(sha256=digest, size=mark[1]) for mark, digest in zip(marks, digests, strict=True)]

    def copy_missing(self, paths: list[Path], files: list[CheckpointFile], folder: str) -> int:
        """Put what the target lacks; returns bytes."""
        there = self.target.files(f"{folder}/files")
        lacking = {
            file.sha256: (path, file)
            for path, file in zip(paths, files, strict=True)
            if there.get(file.sha256) != file.size
        }
        self._each(lambda row: self.target.put(row[0], f"{folder}/files/{row[1].sha256}"), lacking.values())
        if lacking:
            self.target.settle(f"{folder}/files")
        return sum(file.size for _, file in lacking.values())

    def _each(self, do: Callable[[T], R], rows: Iterable[T]) -> list[R]:
        def unless_stopped(row: T) -> R:
            if self.stopped.is_set():
                raise StoreError(f"the checkpoint to {self.target} was cut short: this process ends")
            return do(row)

        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(unless_stopped, rows))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
