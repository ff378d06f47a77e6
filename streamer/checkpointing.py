"""Where checkpoints go, and how commands show them."""

from __future__ import annotations

from typing import Any

from indexer.checkpoints import CheckpointInfo, CheckpointTarget
from schemas.config import Config


def target_of(config: Config, url: str | None = None) -> CheckpointTarget:
    """Where checkpoints go: ``url``, else ``checkpoints.url``, else below the data directory.

    Raises:
        ConfigError: if nothing serves the URL.
    """
    return CheckpointTarget(url or config.checkpoints.url or config.data_dir / "checkpoints")


def shown(info: CheckpointInfo, target: CheckpointTarget) -> dict[str, Any]:
    """What commands print of a checkpoint."""
    return {
        "checkpoint": info.name,
        "target": str(target),
        "shard": info.shard,
        "generation": info.store.generation,
        "model_hash": info.store.model_hash,
        "created_at_ms": info.created_at_ms,
        "offsets": dict(info.offsets),
        "bytes": info.size,
    }
