"""Co-training of encoder and codebook.

    L = sum_f w_f (L_MF + L_QMF + anchor + over-use penalty)

L_MF scores candidates by their embeddings, L_QMF by their quantised embeddings against the same un-quantised
triggers. With the same log, configuration and number of threads the artifact is the same, byte for byte,
unless the time budget ended the training early (``stopped_early`` in the metrics).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from model_runtime import artifact as artifacts
from model_runtime import fixed_point as fx
from model_runtime.encoder import Encoder, EncoderShape
from model_runtime.features import FeatureBatch, extract
from model_runtime.runtime import FrozenModel
from model_runtime.training import losses
from model_runtime.training.balance import Balance, start_layer
from model_runtime.training.batches import BatchSource
from model_runtime.training.report import CodeReport, code_report
from schemas.artifact import TrainingWindow
from schemas.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_runtime.training.batches import Batch
    from model_runtime.training.data import TrainingLog
    from schemas.training import TrainingConfig

_CHUNK: Final = 2_048
_START_SAMPLE: Final = 32_768  # items that a layer's k-means looks at
_WARM_UP: Final = 50
_SHARPNESS: Final = 0.1


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A trained model.

    Attributes:
        artifact: to save or to run (:class:`model_runtime.runtime.FrozenModel`).
        codes: how the training items use the codebook.
        seconds: how long training took.
        steps: how many steps were made.
    """

    artifact: artifacts.Artifact
    codes: CodeReport
    seconds: float
    steps: int


def train(
    log: TrainingLog,
    config: TrainingConfig,
    *,
    until_ms: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Train a model on a log.

    Args:
        log: items and engagements (``streamer.training_data`` reads one).
        config: shape and schedule.
        until_ms: use only what happened before this moment.
        progress: told the number of steps just made, ``config.steps`` in all.

    Raises:
        UsageError: nothing to learn from, or the configuration makes the loss diverge.
    """
    if until_ms is not None:
        log = log.before(until_ms)
    if not log.item_ids or not len(log.user):
        raise UsageError("the span holds no items with engagements to learn from; train on a longer span")
    threads = torch.get_num_threads()
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        return _Training(log, config).run(progress)
    finally:
        torch.set_num_threads(threads)


class _Training:
    """The state of one training."""

    def __init__(self, log: TrainingLog, config: TrainingConfig) -> None:
        self._log, self._config = log, config
        self._rng = np.random.default_rng(config.seed)
        self._source = BatchSource(log, config)
        self._shape = EncoderShape(config.features, len(config.labels), config.dim, config.token_dim, config.hidden)
        features = extract(log.contents, config.features)
        rows, numbered = np.unique(features.tokens, return_inverse=True)
        self._features = replace(features, tokens=numbered.astype(np.int32))
        self._encoder = Encoder(self._shape, self._rng, rows)
        shape = (len(config.labels), config.layers, config.codewords)
        self._codewords = torch.nn.Parameter(torch.zeros(*shape, config.dim))
        self._started = 0
        self._balance = Balance(
            shape,
            start_step=int(config.start_share * config.steps),
            layer_steps=int(config.layer_share * config.steps),
            decay=config.usage_decay,
            allowed=config.usage_allowed,
            sharpness=_SHARPNESS,
        )
        self._optimiser = torch.optim.AdamW(
            [
                {"params": list(self._encoder.parameters()), "weight_decay": config.weight_decay},
                {"params": [self._codewords], "weight_decay": 0.0},
            ],
            fused=True,
        )

    def run(self, progress: Callable[[int], None] | None) -> TrainingResult:
        config = self._config
        begin = time.monotonic()
        last_losses: list[float] = []
        steps = 0
        while steps < config.steps and time.monotonic() - begin < config.max_seconds:
            self._schedule(steps)
            loss = self._loss(self._source.draw(self._rng), self._balance.active_layers(steps))
            if not math.isfinite(loss.item()):
                raise UsageError(f"the loss is {loss.item()} at step {steps}; lower learning_rate or raise temperature")
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            last_losses = [*last_losses[-19:], loss.item()]
            steps += 1
            if progress is not None:
                progress(1)
        self._start_layers(config.layers)  # those that a spent time budget left out
        return self._finish(steps, time.monotonic() - begin, float(np.mean(last_losses or [math.nan])))

    def _schedule(self, step: int) -> None:
        config = self._config
        self._start_layers(self._balance.active_layers(step))
        factor = min((step + 1) / _WARM_UP, 0.5 * (1 + math.cos(math.pi * step / config.steps)))
        rates = (config.learning_rate, config.codebook_learning_rate)
        for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor

    def _start_layers(self, active: int) -> None:
        while self._started < active:
            vectors = self._sample_vectors()
            books = start_layer(vectors, self._codewords.detach().numpy(), self._started, self._rng)
            with torch.no_grad():
                self._codewords[:, self._started] = torch.from_numpy(books)
            self._started += 1

    @torch.no_grad()
    def _sample_vectors(self) -> artifacts.Float32Array:
        rows = np.arange(len(self._features))
        if len(rows) > _START_SAMPLE:
            rows = np.sort(self._rng.choice(rows, _START_SAMPLE, replace=False))
        parts = [self._encoder(self._features.take(rows[at : at + _CHUNK])) for at in range(0, len(rows), _CHUNK)]
        vectors: artifacts.Float32Array = torch.cat(parts).numpy()
        return vectors

    def _loss(self, batch: Batch, active: int) -> torch.Tensor:
        config = self._config
        vectors = self._encoder(self._drop_groups(self._features.take(batch.items)))
        total = torch.zeros(())
        for facet, (label, pairs) in enumerate(zip(config.labels, batch.facets, strict=True)):
            if not len(pairs.positive):
                continue  # every draw was unsuitable; the mean over nothing would be NaN
            # Not vectors[rows, facet]: its backward adds in the order in which threads arrive.
            triggers = vectors[:, facet].index_select(0, pairs.trigger)
            columns = vectors[:, facet].index_select(0, batch.columns)
            scored = (pairs.positive, batch.log_pi, pairs.blocked, config.temperature)
            loss = losses.sampled_softmax(triggers, columns, *scored)
            if active:
                quantised, codes, distances = losses.quantise(columns, self._codewords[facet], active)
                by_code = losses.straight_through(columns, quantised)
                loss = loss + config.quantised_weight * losses.sampled_softmax(triggers, by_code, *scored)
                loss = loss + config.anchor_weight * losses.anchor(columns, quantised, config.commitment)
                loss = loss + config.usage_weight * self._balance.penalty(facet, codes, distances)
            total = total + label.weight * loss
        return total

    def _drop_groups(self, batch: FeatureBatch) -> FeatureBatch:
        """Leaves out feature groups at random, but never all of an item's."""
        if not self._config.group_dropout:
            return batch
        kept = self._rng.random(batch.scale.shape) >= self._config.group_dropout
        kept |= ~(kept & (batch.scale > 0)).any(0)
        return replace(batch, scale=batch.scale * kept.astype(np.float32))

    def _finish(self, steps: int, seconds: float, loss: float) -> TrainingResult:
        config, log = self._config, self._log
        window = TrainingWindow(
            from_ms=int(log.time[0]),
            to_ms=int(log.time[-1]) + 1,
            items=len(log.item_ids),
            engagements=len(log.user),
        )
        artifact = artifacts.assemble(
            name=config.name,
            version=_version(window.to_ms),
            shape=self._shape,
            encoder=self._encoder.export(),
            codewords=fx.snap(self._codewords.detach().numpy(), fx.CODEWORD_BITS, fx.CODEWORD_LIMIT),
            labels=config.labels,
            window=window,
            metrics={"final_loss": loss, "steps": float(steps), "stopped_early": float(steps < config.steps)},
        )
        model = FrozenModel(artifact)
        encoded = [model.encode(log.contents[at : at + _CHUNK]) for at in range(0, len(log.contents), _CHUNK)]
        codes = code_report(
            np.concatenate([part.codes for part in encoded]),
            np.concatenate([part.raw for part in encoded]),
            config.codewords,
        )
        return TrainingResult(artifacts.with_metrics(artifact, codes.metrics()), codes, seconds, steps)


def _version(to_ms: int) -> str:
    """When the training window ended, which orders models of one name."""
    return datetime.fromtimestamp(to_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
