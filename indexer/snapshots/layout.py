"""Where snapshots lie in their target, and which there are.

TARGET / CURRENT                              index version to read
       / GENERATION-HASH / shard-00000 / CURRENT          full snapshot to read
                                       / full-MS-RANDOM / *.npy
                                                        / manifest.json   written last
                                                        / delta.json      of the newest delta, replaced by the next
                                                        / delta-*.npz     its segments
"""

from __future__ import annotations

import secrets
from typing import Final, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from indexer.checkpoints.target import CheckpointTarget
from schemas.errors import StoreCorruptError
from schemas.snapshot import IndexPointer, ShardPointer, SnapshotInfo

log = structlog.get_logger(__name__)

ModelT = TypeVar("ModelT", bound=BaseModel)

POINTER: Final = "CURRENT"
MANIFEST: Final = "manifest.json"
DELTA: Final = "delta.json"


def target_at(url: str) -> CheckpointTarget:
    """Where snapshots are.

    Raises:
        ConfigError: if nothing serves the URL.
    """
    return CheckpointTarget(url, "snapshots")


def new_name(now_ms: int) -> str:
    """Of a full snapshot: nobody else's."""
    return f"full-{now_ms:013d}-{secrets.token_hex(4)}"


def read(target: CheckpointTarget, path: str, model: type[ModelT]) -> ModelT | None:
    """A small JSON file; None if it is not there.

    Raises:
        StoreCorruptError: if it does not decode.
        StoreError: if the target refuses.
    """
    try:
        return model.model_validate_json(target.read(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StoreCorruptError(f"{path} in snapshots {target} does not decode: {error}") from error


def current_index(target: CheckpointTarget) -> str | None:
    """Folder of the index version to read; None where nothing was published."""
    found = read(target, POINTER, IndexPointer)
    return None if found is None else found.index


def current_full(target: CheckpointTarget, folder: str) -> str | None:
    """Name of the full snapshot of a shard to read; None where there is none."""
    found = read(target, f"{folder}/{POINTER}", ShardPointer)
    return None if found is None else found.full


def shards(target: CheckpointTarget, index: str) -> list[int]:
    """Shards that an index version has folders of, ascending."""
    names = [name.removeprefix("shard-") for name in target.folders(index) if name.startswith("shard-")]
    return sorted(int(name) for name in names if name.isdecimal())


def shard_folder(index: str, shard: int) -> str:
    """Of one shard in the target."""
    return f"{index}/shard-{shard:05d}"


def read_pair(target: CheckpointTarget, folder: str, full: str) -> tuple[SnapshotInfo | None, SnapshotInfo | None]:
    """Manifests of a full snapshot and of its newest delta, None for what is not there.

    Raises:
        StoreCorruptError: if one does not decode, or is that of another.
    """
    found = []
    for name, kind in ((MANIFEST, "full"), (DELTA, "delta")):
        info = read(target, f"{folder}/{full}/{name}", SnapshotInfo)
        if info is not None and (info.kind, info.full, info.folder) != (kind, full, folder):
            raise StoreCorruptError(
                f"{folder}/{full}/{name} in snapshots {target} says it is {info.kind} of {info.folder}/{info.full}"
            )
        found.append(info)
    info, delta = found
    if info is not None and delta is not None and info.store != delta.store:
        raise StoreCorruptError(f"the delta in {folder}/{full} of snapshots {target} is one of another index")
    return info, delta


def fulls(target: CheckpointTarget, folder: str) -> list[str]:
    """Names of the full snapshots of a shard, unfinished ones among them, oldest first."""
    return sorted(name for name in target.folders(folder) if name.startswith("full-"))


def list_(target: CheckpointTarget) -> list[tuple[SnapshotInfo, bool]]:
    """All full snapshots and their newest deltas, and whether each is what readers read now; oldest first.

    What does not decode is named in the log and left out.

    Raises:
        StoreError: if the target refuses.
    """
    out: list[tuple[SnapshotInfo, bool]] = []
    now = current_index(target)
    for index in target.folders(""):
        for shard in shards(target, index):
            folder = shard_folder(index, shard)
            current = current_full(target, folder)
            for full in fulls(target, folder):
                try:
                    pair = read_pair(target, folder, full)
                except StoreCorruptError as error:
                    log.warning("snapshot_unreadable", path=f"{folder}/{full}", error=str(error))
                    continue
                out += [(info, index == now and full == current) for info in pair if info is not None]
    return out
