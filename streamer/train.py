"""An event log to a model artifact, and an artifact with newer events to the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from model_runtime import artifact as artifacts
from model_runtime.training.data import TrainingLog
from model_runtime.training.state import TrainingState
from model_runtime.training.trainer import OnStep, Trainer
from schemas.artifact import ArtifactManifest
from schemas.errors import UsageError
from schemas.training import TrainingConfig
from streamer.training_data import read_training_log
from streamer.training_topics import TopicSpan, read_training_topics


def train_artifact(
    events: Path | TopicSpan,
    out: Path,
    config: TrainingConfig,
    until_ms: int | None,
    progress: Callable[[int], None],
    *,
    checkpoint: Path | None = None,
    curves: Path | None = None,
    device: str = "cpu",
) -> ArtifactManifest:
    """Train on an event log, or on a part of the topics, and write the artifact.

    Args:
        events: the event log's directory, or what of the topics is learned from.
        out: the artifact's directory; one that is there is replaced once the new one is whole.
        config: shape and schedule.
        until_ms: nothing at or after this moment is learned from, epoch milliseconds.
        progress: told the steps made since the last call.
        checkpoint: a file that the training can be taken up from; one that is there, of a training that was
            interrupted, is.
        curves: a file to which each step adds its losses, one JSON object a line.
        device: ``cpu`` or a CUDA device.

    Raises:
        UsageError: if there is no event log, or nothing in it to learn from, or the checkpoint is of another training.
        BrokerError: if the topics cannot be read.
        ArtifactError: if the artifact or the checkpoint cannot be written or read.
    """
    start = config if checkpoint is None or not checkpoint.exists() else _interrupted(checkpoint, config)
    log = _read(events, until_ms)
    trainer = Trainer(start, device)
    progress(trainer.state.step)
    with telling(curves, progress) as on_step:
        trainer.fit(log, until_ms=until_ms, on_step=on_step, checkpoint=checkpoint)
    return _publish(trainer, out, checkpoint)


def refresh_artifact(
    events: Path | TopicSpan,
    before: Path,
    out: Path,
    given: dict[str, object],
    until_ms: int | None,
    progress: Callable[[int], None],
    *,
    checkpoint: Path | None = None,
    curves: Path | None = None,
    device: str = "cpu",
) -> ArtifactManifest:
    """Go on from a model with the newest events of a log, and write the next artifact.

    Args:
        events: as for :func:`train_artifact`; they reach back as far as counts and histories matter.
        before: the artifact's directory, or a checkpoint file, which goes on as if it had never stopped.
        out: as for :func:`train_artifact`; may be ``before``.
        given: training settings that differ from the model's, section by section; the shape is the model's.
        until_ms: as for :func:`train_artifact`; the last engagement before it ends what is learned from.
        progress: as for :func:`train_artifact`.
        checkpoint: a file to write, to go on from next time.
        curves: as for :func:`train_artifact`.
        device: as for :func:`train_artifact`.

    Raises:
        UsageError: if there is no event log, or it ends before what the model learned from.
        ConfigError: a section is given where there is a single setting.
        ArtifactError: if something cannot be read or written.
    """
    state = starting_state(before, given)
    log = _read(events, until_ms)
    if not len(log.time):
        raise UsageError(f"{events} holds no engagements to go on with")
    until_ms = int(log.time[-1]) + 1  # as for a first training; a later moment would keep the next refresh waiting
    if state.window is not None and until_ms <= state.window.to_ms:
        raise UsageError(
            f"the model has learned from events to {state.window.to_ms} already, there is nothing newer before "
            f"{until_ms} (epoch milliseconds); wait for more, or train anew"
        )
    trainer = Trainer(state, device)
    with telling(curves, progress) as on_step:
        trainer.refresh(log, until_ms, on_step=on_step)
    return _publish(trainer, out, checkpoint)


def _read(events: Path | TopicSpan, until_ms: int | None) -> TrainingLog:
    if isinstance(events, TopicSpan):
        return read_training_topics(events, until_ms)
    return read_training_log(events, until_ms=until_ms)


def starting_state(before: Path, given: dict[str, object]) -> TrainingState:
    """What a model goes on from.

    Args:
        before: an artifact's directory, or a checkpoint file.
        given: training settings that differ from what the model says of itself.

    Raises:
        ArtifactError: there is no such model, or the settings are of another shape.
        ConfigError: a section is given where there is a single setting.
        ValidationError: the settings are none.
    """
    if before.is_file():
        return TrainingState.load(before).with_settings(given)
    return TrainingState.of_artifact(artifacts.load(before), given)


def _interrupted(checkpoint: Path, config: TrainingConfig) -> TrainingState:
    state = TrainingState.load(checkpoint)
    if state.config != config:
        raise UsageError(f"{checkpoint} is of a training with other settings; give those, or another --checkpoint")
    if state.fitted:
        raise UsageError(f"{checkpoint} is of a finished training; go on from it with --continue, or remove it")
    return state


@contextmanager
def telling(path: Path | None, progress: Callable[[int], None]) -> Iterator[OnStep]:
    """What to tell each step: ``progress``, and a file of losses as JSON lines if there is one.

    Raises:
        UsageError: if the file cannot be written.
    """
    if path is None:
        yield lambda _: progress(1)
        return
    try:
        with path.open("ab") as file:

            def on_step(parts: dict[str, float]) -> None:
                file.write(orjson.dumps(parts, option=orjson.OPT_APPEND_NEWLINE))
                progress(1)

            yield on_step
    except OSError as error:
        raise UsageError(f"curves {path} cannot be written: {error}") from error


def _publish(trainer: Trainer, out: Path, checkpoint: Path | None) -> ArtifactManifest:
    artifact = trainer.artifact()
    artifacts.save(artifact, out)
    if checkpoint is not None:
        trainer.state.save(checkpoint)
    return artifact.manifest
