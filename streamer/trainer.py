"""The trainer: reads an event log as it grows and publishes one artifact after the other.

Each goes on from the newest one in the directory of artifacts (:mod:`model_runtime.published`), with the state that
lies beside it, so that a trainer that was killed and started again makes what it would have made. All that was read
stays in memory; the log is read once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from indexer.failpoints import failpoint
from indexer.store import now_ms
from model_runtime import artifact as artifacts
from model_runtime.published import TRAINING, expire, is_name, newest, next_place, remove_half_written
from model_runtime.runtime import torch_device
from model_runtime.training.state import TrainingState
from model_runtime.training.trainer import Trainer
from schemas.errors import ArtifactError, ConfigError, UsageError
from schemas.training import TrainingConfig
from streamer.holding import locked
from streamer.sources.eventlog import EventLogSource
from streamer.train import telling
from streamer.training_data import Reading

if TYPE_CHECKING:
    from model_runtime.training.data import TrainingLog
    from schemas.artifact import ArtifactManifest

log = structlog.get_logger(__name__)

_LOOK_S: Final = 1.0
_AHEAD_MS: Final = 86_400_000
"""Events further ahead of this machine's clock are left out: one of them would put all refreshes off."""


class _StoppedError(Exception):
    """Asked to end in the middle of a training."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is made when.

    Attributes:
        every_s: the next artifact is due once engagements reach so far beyond what the newest has learned from, in
            event time; the first one once they span as much.
        once: make one of whatever is there, and end.
        keep: so many of the newest artifacts stay.
    """

    every_s: float = 3_600.0
    once: bool = False
    keep: int = 5


@dataclass(slots=True)
class TrainerProcess:
    """One trainer.

    Attributes:
        events: the event log's directory.
        models: the directory of artifacts; one trainer at a time.
        schedule: what is made when.
        given: training settings that differ from what the newest artifact says of itself, section by section.
        curves: a file to which each step adds its losses, one JSON object a line.
        device: ``cpu`` or a CUDA device.
        on_step: told of each step.
        stopped: set it to end; what is under way is given up.
        published: (artifact, its manifest) of what was made, in order.
    """

    events: Path
    models: Path
    schedule: Schedule
    given: dict[str, Any] = field(default_factory=dict)
    curves: Path | None = None
    device: str = "cpu"
    on_step: Callable[[int], None] = lambda _: None
    stopped: threading.Event = field(default_factory=threading.Event)
    published: list[tuple[Path, ArtifactManifest]] = field(default_factory=list)

    def run(self) -> None:
        """Train until stopped, or once.

        Raises:
            UsageError: the log is not there, damaged, or holds nothing to learn from; another trainer runs.
            ArtifactError: an artifact cannot be read or written.
            ConfigError, ValidationError: the settings are none.
        """
        with _alone(self.models):
            remove_half_written(self.models)
            self._check()
            source = EventLogSource(self.events, follow=not self.schedule.once)
            try:
                self._follow(source)
            finally:
                source.close()

    def _check(self) -> None:
        """Tell now what would else be found when the first artifact is due, hours later."""
        torch_device(self.device)
        before = newest(self.models)
        name = (TrainingConfig.model_validate(self.given) if before is None else self._state_of(before).config).name
        if not is_name(name):
            raise ConfigError(
                f"training settings: name is {name!r}, and artifacts would be {name}-0001 in {self.models}; "
                "give a name that a directory can have and that does not begin with a dot"
            )

    def _follow(self, source: EventLogSource) -> None:
        reading = Reading()
        unseen = 0
        while not self.stopped.is_set():
            reading.until_ms = now_ms() + _AHEAD_MS
            unseen += reading.read_on(source, stopped=self.stopped.is_set)
            if self.stopped.is_set():
                return
            if unseen and (self.schedule.once or self._due(reading)):
                unseen = 0
                try:
                    self._make(reading.log())
                except _StoppedError:
                    return
            if self.schedule.once:
                return
            self.stopped.wait(_LOOK_S)

    def _due(self, reading: Reading) -> bool:
        if reading.first_ms is None or reading.last_ms is None:
            return False
        before = newest(self.models)
        since = reading.first_ms if before is None else artifacts.read_manifest(before).window.to_ms
        return reading.last_ms + 1 >= since + self.schedule.every_s * 1_000

    def _make(self, read: TrainingLog) -> None:
        """The next artifact, if there is anything that the newest has not learned from."""
        before = newest(self.models)
        state = None if before is None else self._state_of(before)
        until_ms = int(read.time[-1]) + 1 if len(read.time) else 0
        if state is not None and state.window is not None and until_ms <= state.window.to_ms:
            return  # what came is of items that nobody knows
        began = time.monotonic()
        trainer = Trainer(TrainingConfig.model_validate(self.given) if state is None else state, self.device)
        with telling(self.curves, self._step) as on_step:
            if state is None:
                made = trainer.fit(read, on_step=on_step)
            else:
                made = trainer.refresh(read, until_ms, on_step=on_step)
        path = self._publish(trainer)
        manifest = made.artifact.manifest
        self.published.append((path, manifest))
        log.info(
            "artifact_published",
            artifact=str(path),
            version=manifest.version,
            model_hash=manifest.model_hash,
            before=None if before is None else before.name,
            window=manifest.window.model_dump(),
            steps=made.steps,
            seconds=round(time.monotonic() - began, 3),
            metrics=manifest.metrics,
        )

    def _step(self, count: int) -> None:
        if self.stopped.is_set():
            raise _StoppedError
        self.on_step(count)

    def _state_of(self, before: Path) -> TrainingState:
        training = before / TRAINING
        if training.exists():
            return TrainingState.load(training).with_settings(self.given)
        return TrainingState.of_artifact(artifacts.load(before), self.given)

    def _publish(self, trainer: Trainer) -> Path:
        def beside(aside: Path) -> None:
            trainer.state.save(aside / TRAINING)
            failpoint("artifact.written")

        artifact = trainer.artifact()
        path = next_place(self.models, artifact.manifest.name)
        artifacts.save(artifact, path, beside)
        failpoint("artifact.published")
        expire(self.models, self.schedule.keep)
        return path


def _alone(models: Path) -> AbstractContextManager[None]:
    """One trainer at a time on a directory of artifacts."""
    taken = UsageError(f"another trainer publishes to {models}; stop it, or choose another --models")

    def denied(error: OSError) -> ArtifactError:
        return ArtifactError(f"cannot write to {models}: {error}; choose another --models")

    return locked(models / ".trainer.lock", taken, denied)
