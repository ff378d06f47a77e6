"""An event log to a model artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model_runtime.runtime import FrozenModel
from model_runtime.training.trainer import train
from schemas.artifact import ArtifactManifest
from schemas.training import TrainingConfig
from streamer.training_data import read_training_log


def train_artifact(
    events: Path, out: Path, config: TrainingConfig, until_ms: int | None, progress: Callable[[int], None]
) -> ArtifactManifest:
    """Train on an event log and write the artifact.

    Args:
        events: the event log's directory.
        out: the artifact's directory; one that is there is replaced once the new one is whole.
        config: shape and schedule.
        until_ms: nothing at or after this moment is learned from, epoch milliseconds.
        progress: told the steps made since the last call.

    Raises:
        UsageError: if there is no event log, or nothing in it to learn from.
        ArtifactError: if the artifact cannot be written.
    """
    log = read_training_log(events, until_ms=until_ms)
    model = FrozenModel(train(log, config, until_ms=until_ms, progress=progress).artifact)
    model.save(out)
    return model.manifest
