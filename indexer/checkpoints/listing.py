"""Which checkpoints there are."""

from __future__ import annotations

import structlog
from pydantic import ValidationError

from indexer.checkpoints.target import CheckpointTarget
from schemas.checkpoints import CheckpointInfo

log = structlog.get_logger(__name__)


def list_(
    target: CheckpointTarget,
    *,
    model_hash: str | None = None,
    generation: str | None = None,
    shard: int | None = None,
) -> list[CheckpointInfo]:
    """Checkpoints, the newest of each shard first: that which reaches furthest, then the youngest.

    A manifest that does not decode is named in the log and left out.

    Args:
        target: where they lie.
        model_hash: only of this model.
        generation: only of this one.
        shard: only of this one.

    Raises:
        StoreError: if the target refuses.
    """
    found = []
    for model in [model_hash] if model_hash is not None else target.folders(""):
        for name in [f"shard-{shard:05d}"] if shard is not None else target.folders(model):
            found += [info for info in _of_folder(target, f"{model}/{name}") if info is not None]
    kept = [info for info in found if generation is None or info.store.generation == generation]
    return sorted(kept, key=lambda info: (info.folder, -info.total, -info.created_at_ms))


def newest(
    target: CheckpointTarget,
    *,
    model_hash: str | None = None,
    generation: str | None = None,
    shard: int,
) -> CheckpointInfo | None:
    """The checkpoint of a shard that reaches furthest, None if there is none."""
    found = list_(target, model_hash=model_hash, generation=generation, shard=shard)
    return max(found, key=lambda info: (info.total, info.created_at_ms), default=None)


def _of_folder(target: CheckpointTarget, folder: str) -> list[CheckpointInfo | None]:
    return [read(target, f"{folder}/{name}") for name in target.files(folder) if is_manifest(name)]


def is_manifest(name: str) -> bool:
    """Whether a file's name is that of a manifest, not of one that was being written."""
    return name.endswith(".json") and not name.startswith(".")


def read(target: CheckpointTarget, path: str) -> CheckpointInfo | None:
    """One manifest; None where it has gone or does not decode."""
    try:
        info = CheckpointInfo.model_validate_json(target.read(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("checkpoint_unreadable", path=path, target=str(target), error=str(error))
        return None
    if f"{info.name}.json" != path:
        log.warning("checkpoint_unreadable", path=path, target=str(target), error=f"it says it is {info.name}")
        return None
    return info
