"""Co-training of encoder, codebook and prior: a first fit, then refreshes with what has happened since.

    trainer = Trainer(config)
    trainer.fit(log, until_ms=t)           # nothing at or after t is looked at
    trainer.refresh(log, until_ms=t + h)   # a few steps on the events of [t, t + h)
    model = trainer.model()                # frozen: .encode, .prior

With the same log, configuration and number of threads the artifact is the same, byte for byte, whether or not the
training was interrupted and taken up from a checkpoint in between, unless the time budget ended it early
(``stopped_early`` in the metrics).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from model_runtime import artifact as artifacts
from model_runtime import encoder, prior
from model_runtime import fixed_point as fx
from model_runtime.runtime import FrozenModel, torch_device
from model_runtime.training.balance import active_layers
from model_runtime.training.learning import Learning, Rates
from model_runtime.training.report import CodeReport, code_report
from model_runtime.training.span import LearnedSpan, goes_on_with
from model_runtime.training.state import TrainingState, encoder_shape
from model_runtime.training.stopping import Watch
from schemas.artifact import PriorSpec, TrainingWindow
from schemas.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from model_runtime.artifact import Artifact
    from model_runtime.training.data import Int64Array, TrainingLog
    from schemas.training import TrainingConfig

OnStep = Callable[[dict[str, float]], None]

_CHUNK: Final = 2_048
_WARM_UP: Final = 50
_FLOOR: Final = 0.02  # the cosine ends here
_KEPT_LOSSES: Final = 20


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A trained model.

    Attributes:
        artifact: to save or to run (:class:`model_runtime.runtime.FrozenModel`).
        codes: how the items learned from use the codebook.
        seconds: how long it took.
        steps: how many steps were made, of the first fit or of this refresh.
    """

    artifact: Artifact
    codes: CodeReport
    seconds: float
    steps: int


def train(
    log: TrainingLog, config: TrainingConfig, *, until_ms: int | None = None, on_step: OnStep | None = None
) -> TrainingResult:
    """Fit a model on a log: :meth:`Trainer.fit` of a new trainer."""
    return Trainer(config).fit(log, until_ms=until_ms, on_step=on_step)


class Trainer:
    """Learns from spans of a log, one after the other.

    Args:
        config: shape and schedule; or, to go on, a state (:class:`model_runtime.training.state.TrainingState`).
        device: ``cpu`` or a CUDA device.

    Raises:
        ArtifactError: the device is not there.
    """

    def __init__(self, config: TrainingConfig | TrainingState, device: str = "cpu") -> None:
        self.state = config if isinstance(config, TrainingState) else TrainingState.fresh(config)
        self._device = torch_device(device)

    @property
    def config(self) -> TrainingConfig:
        """Shape and schedule."""
        return self.state.config

    def fit(
        self,
        log: TrainingLog,
        *,
        until_ms: int | None = None,
        on_step: OnStep | None = None,
        checkpoint: Path | None = None,
    ) -> TrainingResult:
        """Train on a log; a trainer whose state is from a checkpoint of this fit goes on with it.

        Args:
            log: items and engagements (``streamer.training_data`` reads one).
            until_ms: use only what happened before this moment.
            on_step: told the step and the parts of its loss.
            checkpoint: written every ``checkpoint_every`` steps.

        Raises:
            UsageError: nothing to learn from, or the configuration makes the loss diverge, or the state is of a fit on
                other events.
        """
        if until_ms is not None:
            log = log.before(until_ms)
        if not log.item_ids or not len(log.user):
            raise UsageError("the span holds no items with engagements to learn from; train on a longer span")
        begin, end = int(log.time[0]), int(log.time[-1]) + 1
        held = int(log.time[int(len(log.time) * (1 - self.config.validation_share))]) if self._validates else end
        if checkpoint is not None or self.state.step:
            span = LearnedSpan.of(log, until_ms)
            if self.state.step:
                goes_on_with(span, self.state.span, checkpoint)
            self.state.span = span
        with _threads(self.config.threads):
            began = time.monotonic()
            learning = Learning(self.state, log, begin, held, self._device, self.config.half_life_s)
            for name in learning.source.idle:
                label = next(label for label in self.config.labels if label.name == name)
                raise UsageError(
                    f"facet {label.name!r} ({label.kind}) finds no pair of items in {len(log.user)} engagements; "
                    "change its label, or train on a longer span"
                )
            watch = Watch(log, self.config, held, end, self.state.stopping) if self._validates else None
            self._fit(learning, watch, on_step, checkpoint, began)
            learning.put_back()
            if self._validates:
                steps = max(self.config.refresh.steps, round(self.state.step * self.config.validation_share))
                self._go_on(log, held, end, steps, on_step)
            self.state.finish()
            self.state.window = TrainingWindow(
                from_ms=begin, to_ms=end, items=len(log.item_ids), engagements=len(log.user)
            )
            return self._result(log, np.arange(len(log.item_ids)), self.state.step, began)

    def refresh(
        self, log: TrainingLog, until_ms: int, *, steps: int | None = None, on_step: OnStep | None = None
    ) -> TrainingResult:
        """Go on with what happened since, and before ``until_ms``: some steps at constant learning rates.

        Args:
            log: items and engagements; with users' and items' past, as pairs and counts reach back.
            until_ms: nothing at or after this moment is looked at.
            steps: instead of ``refresh.steps`` for each ``refresh.span_s``.
            on_step: told the step and the parts of its loss.

        Raises:
            UsageError: nothing was learned before, or the loss diverges.
        """
        before = self.state.window
        if before is None:
            raise UsageError("there is no model to go on from; fit one first")
        config = self.config
        log = log.before(until_ms)
        span_ms, back_ms = 1_000 * config.refresh.span_s, 1_000 * config.refresh.look_back_s
        new_ms = until_ms - min(before.to_ms, until_ms - span_ms)
        from_ms = until_ms - max(new_ms, back_ms)
        new = len(log.time) - int(np.searchsorted(log.time, before.to_ms))
        with _threads(config.threads):
            began = time.monotonic()
            part = log.of_items(_living(log, from_ms, config.alive_s))
            if steps is None:
                spans = max(1, round(new_ms / span_ms))
                steps = min(config.steps, config.refresh.steps * spans)
            made = self._go_on(part, from_ms, until_ms, steps, on_step)
            self.state.window = TrainingWindow(
                from_ms=before.from_ms,
                to_ms=max(before.to_ms, until_ms),
                items=len(log.item_ids),
                engagements=before.engagements + new,
            )
            return self._result(part, np.arange(len(part.item_ids)), made, began)

    def artifact(self) -> Artifact:
        """The model as it is now.

        Raises:
            UsageError: nothing was learned yet.
        """
        state, config = self.state, self.config
        if state.window is None:
            raise UsageError("there is no model yet; fit one first")
        weights = {name: values for name, values in state.below("encoder.").items() if len(values)}
        frozen, exponent = encoder.freeze(weights)
        spec = PriorSpec(
            half_lives_s=config.prior.half_lives_s, hidden=config.prior.hidden, temperature=config.temperature
        )
        return artifacts.assemble(
            name=config.name,
            version=_version(state.window.to_ms),
            shape=encoder_shape(config, len(state.id_keys)),
            encoder=frozen,
            codewords=fx.snap(state.weights["codewords"], fx.CODEWORD_BITS, fx.CODEWORD_LIMIT),
            labels=config.labels,
            window=state.window,
            metrics=state.metrics,
            id_keys=state.id_keys,
            table_exponent=exponent,
            prior=(spec, prior.freeze(state.below("prior."))) if config.prior.export else None,
        )

    def model(self) -> FrozenModel:
        """The model as it is now, frozen, on the CPU."""
        return FrozenModel(self.artifact())

    @property
    def _validates(self) -> bool:
        return self.config.validation_share > 0

    def _fit(
        self, learning: Learning, watch: Watch | None, on_step: OnStep | None, checkpoint: Path | None, began: float
    ) -> None:
        config, state = self.config, self.state
        first_step = state.step
        while state.step < config.steps and time.monotonic() - began < config.max_seconds:
            if checkpoint is not None and state.step > first_step and state.step % config.checkpoint_every == 0:
                learning.put_back()
                state.save(checkpoint)
            starts = int(config.start_share * config.steps), int(config.layer_share * config.steps)
            layers = active_layers(state.step, config.layers, *starts)
            learning.start_layers(layers)
            factor = min((state.step + 1) / _WARM_UP, _cosine(state.step / config.steps))
            parts = learning.step(layers, self._rates(factor, factor))
            state.step += 1
            state.losses = [*state.losses[1 - _KEPT_LOSSES :], parts["loss"]]
            _tell(on_step, state.step, parts, layers)
            if watch is not None and watch.stop(learning, state.step, layers):
                break
        learning.start_layers(config.layers)  # those that a spent time budget left out
        learning.revive()
        state.metrics |= {
            "final_loss": float(np.mean(state.losses or [math.nan])),
            "steps": float(state.step),
            "stopped_early": float(state.step < config.steps),
        }

    def _go_on(self, log: TrainingLog, from_ms: int, to_ms: int, steps: int, on_step: OnStep | None) -> int:
        """Steps at constant rates on a span; none where it holds no pair."""
        learning = Learning(self.state, log, from_ms, to_ms, self._device, self.config.refresh.half_life_s)
        if len(learning.source.idle) == len(self.config.labels):
            return 0
        refresh = self.config.refresh
        for step in range(steps):
            parts = learning.step(self.config.layers, self._rates(refresh.rate, refresh.codebook_rate))
            _tell(on_step, step + 1, parts, self.config.layers)
        learning.revive()
        learning.put_back()
        return steps

    def _rates(self, factor: float, of_codewords: float) -> Rates:
        config = self.config
        return Rates(
            config.learning_rate * factor,
            config.codebook_learning_rate * of_codewords,
            config.prior.learning_rate * factor,
        )

    def _result(self, log: TrainingLog, rows: Int64Array, steps: int, began: float) -> TrainingResult:
        model = self.model()
        chunks = [rows[at : at + _CHUNK] for at in range(0, len(rows), _CHUNK)]
        encoded = [
            model.encode([log.contents[row] for row in chunk], [log.item_ids[row] for row in chunk]) for chunk in chunks
        ]
        codes = code_report(
            np.concatenate([part.codes for part in encoded]),
            np.concatenate([part.raw for part in encoded]),
            np.concatenate([part.vectors for part in encoded]),
            self.config.codewords,
        )
        self.state.metrics |= codes.metrics()
        return TrainingResult(self.artifact(), codes, time.monotonic() - began, steps)


def _tell(on_step: OnStep | None, step: int, parts: dict[str, float], layers: int) -> None:
    if on_step is not None:
        on_step({"step": step, "layers": layers, **parts})


def _cosine(progress: float) -> float:
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


def _living(log: TrainingLog, from_ms: int, alive_s: int | None) -> Int64Array:
    """Rows of the items created or engaged with at most ``alive_s`` before ``from_ms``, or later."""
    if alive_s is None:
        return np.arange(len(log.item_ids))
    latest = log.created_at.copy()
    np.maximum.at(latest, log.item, log.time)
    return np.flatnonzero(latest >= from_ms - alive_s * 1_000)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _version(to_ms: int) -> str:
    """When the training window ended, which orders models of one name."""
    return datetime.fromtimestamp(to_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
