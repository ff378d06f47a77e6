"""Going on from a checkpoint."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from indexer.checkpoints.listing import list_
from indexer.checkpoints.taking import WORKERS
from indexer.checkpoints.target import CheckpointTarget
from indexer.durable import sync_path
from indexer.failpoints import failpoint
from indexer.store import Store, check_meta, is_there
from schemas.checkpoints import CheckpointFile, CheckpointInfo
from schemas.errors import StoreCorruptError, StoreError, StoreMismatchError
from schemas.store import StoreMeta

log = structlog.get_logger(__name__)

_REMAINS: Final = re.compile(r"(LOG.*|LOCK|IDENTITY|(MANIFEST|OPTIONS)-.*|.*\.dbtmp|\d+\.log|rocksdict-config\.json)")


def restore(target: CheckpointTarget, info: CheckpointInfo, into: Path, *, wanted: StoreMeta | None = None) -> None:
    """Make ``into`` the store that a checkpoint holds; it appears whole and checked, or not at all.

    Files are copies, never links: a store that is damaged later leaves its checkpoints whole.

    Args:
        target: where it lies.
        info: which.
        into: must not exist, or hold no more than a store whose making was cut short. ``INTO.partial`` is worked in;
            what a killed process left there is removed.
        wanted: refuse a checkpoint of something else.

    Raises:
        StoreMismatchError: if it was made for another model or configuration than ``wanted``.
        StoreCorruptError: if a file of it is missing or altered; names both.
        StoreError: if ``into`` exists, or target or disk refuse.
    """
    if wanted is not None:
        check_meta(info.store, wanted, Path(f"checkpoint {info.name} in {target}"))
    _check_free(into)
    began = time.perf_counter()
    partial = into.with_name(f"{into.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    failpoint("restore.before")
    try:
        partial.mkdir(parents=True)
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda row: _fetch(target, info, row[0], row[1], partial), info.files.items()))
        failpoint("restore.copied")
        _check(partial, info, target)
        for path in (*partial.iterdir(), partial):
            sync_path(path)
        _remove_remains(into)
        partial.rename(into)
        sync_path(into.parent)
    except OSError as error:
        raise StoreError(f"cannot restore checkpoint {info.name} into {into}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    failpoint("restore.renamed")
    log.info(
        "checkpoint_restored",
        checkpoint=info.name,
        target=str(target),
        into=str(into),
        bytes=info.size,
        ms=round((time.perf_counter() - began) * 1e3, 1),
    )


def restore_newest(
    target: CheckpointTarget,
    wanted: StoreMeta,
    shard: int,
    into: Path,
    *,
    accept: Callable[[CheckpointInfo], bool] = lambda _: True,
) -> CheckpointInfo | None:
    """Restore the checkpoint of a shard that reaches furthest; where it is damaged, say so and take the next.

    Args:
        target: where they lie.
        wanted: what the artifact at hand makes of a store; checkpoints of anything else are passed over.
        shard: its number.
        into: as :func:`restore` takes it.
        accept: False passes a checkpoint over, because its source is another, for example.

    Returns:
        What was restored; None if there is nothing to restore.

    Raises:
        StoreError: if ``into`` exists, or target or disk refuse.
    """
    _check_free(into)
    for info in list_(target, model_hash=wanted.model_hash, shard=shard):
        if not accept(info):
            continue
        try:
            restore(target, info, into, wanted=wanted)
        except (StoreMismatchError, StoreCorruptError) as error:
            log.warning("checkpoint_passed_over", checkpoint=info.name, target=str(target), error=str(error))
            continue
        return info
    return None


def _check_free(into: Path) -> None:
    if is_there(into) or not _without_data(into):
        raise StoreError(f"{into} exists; a checkpoint is restored only where nothing is: move it away first")


def _without_data(into: Path) -> bool:
    """Whether there is nothing, or only what RocksDB makes before it holds anything: its process was killed there."""
    return not into.exists() or (
        into.is_dir() and all(path.is_file() and _REMAINS.fullmatch(path.name) for path in into.iterdir())
    )


def _remove_remains(into: Path) -> None:
    if into.exists() and not is_there(into) and _without_data(into):
        for path in into.iterdir():
            path.unlink()
        into.rmdir()


def _fetch(target: CheckpointTarget, info: CheckpointInfo, name: str, file: CheckpointFile, partial: Path) -> None:
    digest, size = hashlib.sha256(), 0
    path = f"{info.folder}/files/{file.sha256}"
    try:
        with (partial / name).open("wb") as out:
            for chunk in target.chunks(path):
                digest.update(chunk)
                size += out.write(chunk)
    except FileNotFoundError:
        raise _damaged(target, info, f"its file {name} ({path}) is missing") from None
    if size != file.size or digest.hexdigest() != file.sha256:
        raise _damaged(target, info, f"its file {name} ({path}) was altered: {size} bytes, {file.size} were written")


def _check(partial: Path, info: CheckpointInfo, target: CheckpointTarget) -> None:
    """Open what was copied, for writing as its next owner will, and compare."""
    try:
        with Store.open(partial) as store:
            meta, offsets = store.meta(), store.offsets()
            store.begin_history()
    except StoreCorruptError as error:
        raise _damaged(target, info, f"it does not open: {error}") from error
    if meta != info.store or offsets != info.offsets:
        raise _damaged(target, info, f"its store is for {meta!r} at {offsets}, the manifest says otherwise")


def _damaged(target: CheckpointTarget, info: CheckpointInfo, what: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"checkpoint {info.name} in {target} is damaged: {what}; restore an older one, or replay the topics"
    )
