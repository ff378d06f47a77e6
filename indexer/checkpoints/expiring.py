"""Forgetting old checkpoints."""

from __future__ import annotations

from itertools import groupby
from typing import Final

import structlog

from indexer.checkpoints.listing import is_manifest, list_
from indexer.checkpoints.target import CheckpointTarget
from schemas.checkpoints import CheckpointInfo

log = structlog.get_logger(__name__)

GRACE_S: Final = 600.0


def expire(
    target: CheckpointTarget,
    keep: int,
    *,
    model_hash: str | None = None,
    shard: int | None = None,
    grace_s: float = GRACE_S,
) -> list[CheckpointInfo]:
    """Keep the ``keep`` youngest checkpoints of each shard, and the one that reaches furthest; forget the others.

    The youngest, not those that reach furthest: after a topic was made anew its offsets begin at 0, and nothing taken
    since would be kept.

    Args:
        target: where they lie.
        keep: how many, at least 1.
        model_hash: only of this model.
        shard: only of this one.
        grace_s: unreferenced files younger than this stay: another process may be about to refer to them.

    Returns:
        What was forgotten.

    Raises:
        StoreError: if the target refuses.
    """
    gone: list[CheckpointInfo] = []
    for folder, infos in groupby(list_(target, model_hash=model_hash, shard=shard), lambda info: info.folder):
        furthest, *others = infos
        young = sorted([furthest, *others], key=lambda info: -info.created_at_ms)[: max(1, keep)]
        old = [info for info in others if info not in young]
        for info in old:
            target.remove(f"{info.name}.json")
            log.info("checkpoint_expired", checkpoint=info.name, target=str(target))
        gone += old
        _remove_unreferenced(target, folder, grace_s)
    return gone


def _remove_unreferenced(target: CheckpointTarget, folder: str, grace_s: float) -> None:
    # Files first, manifests second: what is published in between is found.
    files = [f"{folder}/files/{name}" for name in target.files(f"{folder}/files")]
    manifests = target.files(folder)
    files += [f"{folder}/{name}" for name in manifests if name.startswith(".")]
    model_hash, _, shard = folder.rpartition("/shard-")
    infos = list_(target, model_hash=model_hash, shard=int(shard))
    if len(infos) < sum(map(is_manifest, manifests)):
        # One of them could not be read, so nobody knows which files it needs.
        return
    needed = {f"{folder}/files/{file.sha256}" for info in infos for file in info.files.values()}
    for path in files:
        if path not in needed and target.age_s(path) > grace_s:
            target.remove(path)
