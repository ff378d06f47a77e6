"""Taking a checkpoint."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from indexer.checkpoints.target import CheckpointTarget
from indexer.failpoints import failpoint
from indexer.store import Store, now_ms
from schemas.checkpoints import CheckpointFile, CheckpointInfo
from schemas.errors import StoreError

log = structlog.get_logger(__name__)

WORKERS: Final = 4  # files hashed or copied at once; both leave the interpreter to others


def create(
    store: Store, shard: int, target: CheckpointTarget, *, source: Mapping[str, str] | None = None, epoch: int = 0
) -> CheckpointInfo:
    """Copy a store to the target as it is at one moment; what the target has already is not copied again.

    Any thread may call it beside the writer, one at a time for each store, while the store stays open. Other threads
    stand still while RocksDB flushes what is in memory (see :meth:`Store.checkpoint`), then go on beside the copying.

    Args:
        store: open for writing.
        shard: its number.
        target: where to.
        source: what identifies the source its offsets belong to.
        epoch: group generation, informative.

    Raises:
        StoreError: if the store or the target refuses; nothing is published then.
    """
    failpoint("checkpoint.before")
    began = time.perf_counter()
    aside = store.path.with_name(f".{store.path.name}.checkpoint")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed here
    try:
        store.checkpoint(aside)
        paused = time.perf_counter() - began
        failpoint("checkpoint.linked")
        # Before the copy is opened to read it, which leaves files that are not the store's.
        paths = sorted(path for path in aside.iterdir() if path.name not in {"LOCK", "LOG", "IDENTITY"})
        with Store.open_secondary(aside) as copy:
            meta, offsets = copy.meta(), copy.offsets()
        info = CheckpointInfo(
            store=meta,
            shard=shard,
            offsets=offsets,
            source=dict(source or {}),
            created_at_ms=now_ms(),
            epoch=epoch,
            files={},
        )
        files = _hash_files(paths, info.folder, target)
        info = info.model_copy(update={"files": {path.name: file for path, file in zip(paths, files, strict=True)}})
        copied = _copy_missing(paths, files, info.folder, target)
        failpoint("checkpoint.copied")
        target.write(f"{info.name}.json", info.model_dump_json(indent=1).encode())
        # Whoever expired old checkpoints meanwhile could not know that this one needs their files.
        copied += _copy_missing(paths, files, info.folder, target)
    except OSError as error:
        raise StoreError(f"cannot take a checkpoint of {store.path}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    failpoint("checkpoint.published")
    log.info(
        "checkpoint_created",
        checkpoint=info.name,
        target=str(target),
        bytes=info.size,
        copied=copied,
        paused_ms=round(paused * 1e3, 1),
        ms=round((time.perf_counter() - began) * 1e3, 1),
    )
    return info


def _hash_files(paths: list[Path], folder: str, target: CheckpointTarget) -> list[CheckpointFile]:
    """What each file holds; tables that a former checkpoint saw are not read again."""
    known = target.hashes.get(folder, {})
    marks = []
    for path in paths:
        stat = path.stat()
        marks.append((path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    with ThreadPoolExecutor(WORKERS) as pool:
        digests = list(pool.map(lambda at: known.get(marks[at]) or _digest(paths[at]), range(len(paths))))
    target.hashes[folder] = {
        mark: digest for mark, digest in zip(marks, digests, strict=True) if mark[0].endswith(".sst")
    }
    return [CheckpointFile(sha256=digest, size=mark[1]) for mark, digest in zip(marks, digests, strict=True)]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_missing(paths: list[Path], files: list[CheckpointFile], folder: str, target: CheckpointTarget) -> int:
    """Put what the target lacks; returns bytes."""
    there = target.files(f"{folder}/files")
    lacking = {
        file.sha256: (path, file)
        for path, file in zip(paths, files, strict=True)
        if there.get(file.sha256) != file.size
    }
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda row: target.put(row[0], f"{folder}/files/{row[1].sha256}"), lacking.values()))
    if lacking:
        target.settle(f"{folder}/files")
    return sum(file.size for _, file in lacking.values())
