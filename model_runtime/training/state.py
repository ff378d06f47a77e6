"""All that a training knows and must keep to go on: arrays and numbers, in memory or as a checkpoint on disk.

A checkpoint is one safetensors file, written aside and renamed: arrays, and everything else as JSON in its metadata.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as tensors_to_bytes

from model_runtime import encoder, prior
from model_runtime.training import checkpoint_arrays
from model_runtime.training.checkpoint_arrays import BEST, FIRST, SECOND, WEIGHT
from model_runtime.training.span import LearnedSpan
from model_runtime.training.stopping import Stopping
from schemas.artifact import TrainingWindow
from schemas.errors import ArtifactError
from schemas.settings_files import laid_over
from schemas.training import TrainingConfig

if TYPE_CHECKING:
    from model_runtime.artifact import Artifact
    from schemas.artifact import ArtifactManifest

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
U64Array = npt.NDArray[np.uint64]

FORMAT: Final = "facetstream-checkpoint-1"


def encoder_shape(config: TrainingConfig, ids: int = 0) -> encoder.EncoderShape:
    """The encoder that a configuration describes."""
    return encoder.EncoderShape(config.features, len(config.labels), config.dim, config.token_dim, config.hidden, ids)


def prior_shape(config: TrainingConfig) -> prior.PriorShape:
    """The prior that a configuration describes."""
    return prior.PriorShape(config.prior.half_lives_s, config.prior.hidden)


@dataclass(slots=True)
class TrainingState:
    """A training between two steps.

    Attributes:
        config: shape and schedule.
        weights: by name, ``encoder.``, ``prior.`` and ``codewords``; whole tables.
        first, second: Adam's moments of each weight.
        updates: Adam's clock of each weight; codewords begin later than others.
        step: steps made of the fit under way.
        fitted: whether the first fit is done.
        started: layers whose codewords have begun.
        usage: (F, L, M) average share of items of each codeword.
        id_keys: (n,) uint64 ascending, hash of each id row's identifier.
        id_seen: (n,) int64, latest engagement of each, epoch milliseconds.
        rng: of everything random.
        window: what was learned from so far.
        metrics: figures for the manifest.
        span: the events that the fit under way learns from; None where no fit is, or none that can be taken up.
        losses: of its last steps.
        stopping: what its early stopping has seen.
    """

    config: TrainingConfig
    weights: dict[str, Float32Array]
    first: dict[str, Float32Array]
    second: dict[str, Float32Array]
    rng: np.random.Generator
    usage: Float32Array
    id_keys: U64Array
    id_seen: Int64Array
    updates: dict[str, int] = field(default_factory=dict)
    step: int = 0
    fitted: bool = False
    started: int = 0
    window: TrainingWindow | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    span: LearnedSpan | None = None
    losses: list[float] = field(default_factory=list)
    stopping: Stopping = field(default_factory=Stopping)

    @classmethod
    def fresh(cls, config: TrainingConfig) -> TrainingState:
        """Before the first step; the same configuration gives the same state."""
        rng = np.random.default_rng(config.seed)
        books = (len(config.labels), config.layers, config.codewords)
        weights = {f"encoder.{n}": v for n, v in encoder.initial_weights(encoder_shape(config), rng).items()}
        weights["encoder.ids"] = np.zeros((0, config.token_dim), np.float32)
        weights["codewords"] = np.zeros((*books, config.dim), np.float32)
        weights |= {f"prior.{n}": v for n, v in prior.initial_weights(prior_shape(config), rng).items()}
        return cls._with(config, weights, rng, np.zeros(0, np.uint64))

    @classmethod
    def of_artifact(cls, artifact: Artifact, given: dict[str, object]) -> TrainingState:
        """To go on from an artifact alone: its weights are there, what Adam knew of them is not.

        Args:
            artifact: any, also one without a prior.
            given: settings that differ from the defaults and from what the manifest says, section by section.

        Raises:
            ArtifactError: the settings describe a model of another shape.
            ConfigError: a section is given where there is a single value.
        """
        manifest = artifact.manifest
        config = TrainingConfig.model_validate(laid_over(_settings_of(manifest), given))
        weights = {f"encoder.{n}": v for n, v in encoder.thaw(artifact.encoder, manifest.table_exponent).items()}
        weights["codewords"] = artifact.codewords.copy()
        weights |= {f"prior.{name}": values.copy() for name, values in artifact.prior.items()}
        weights = cls.fresh(config).weights | weights
        _check_shapes(config, weights)
        rng = np.random.default_rng((config.seed, manifest.window.to_ms))  # each of a row of refreshes draws anew
        state = cls._with(config, weights, rng, artifact.id_keys.copy())
        state.started, state.fitted, state.window = config.layers, True, manifest.window
        state.id_seen[:] = manifest.window.from_ms
        return state

    def with_settings(self, given: dict[str, object]) -> TrainingState:
        """The same state with some settings changed, section by section; the others stay.

        Raises:
            ArtifactError: the settings describe a model of another shape.
            ConfigError: a section is given where there is a single value.
        """
        config = TrainingConfig.model_validate(laid_over(self.config.model_dump(), given))
        _check_shapes(config, self.weights)
        return replace(self, config=config)

    @classmethod
    def _with(
        cls, config: TrainingConfig, weights: dict[str, Float32Array], rng: np.random.Generator, id_keys: U64Array
    ) -> TrainingState:
        usage = np.full(weights["codewords"].shape[:3], 1 / config.codewords, np.float32)
        first, second = ({name: np.zeros_like(values) for name, values in weights.items()} for _ in range(2))
        return cls(config, weights, first, second, rng, usage, id_keys, np.zeros(len(id_keys), np.int64))

    def below(self, prefix: str) -> dict[str, Float32Array]:
        """Weights of one part, ``encoder.`` or ``prior.``, without the prefix."""
        return below(prefix, self.weights)

    def add_ids(self, keys: U64Array, seen: Int64Array) -> Int64Array:
        """Rows of these identifiers, made where there are none; then at most ``max_ids`` are left, the latest seen.

        Args:
            keys: (n,) uint64 distinct hashes.
            seen: (n,) int64, when each was last engaged with.

        Returns:
            (n,) int64 row of each, -1 for those that found no place.
        """
        merged = np.union1d(self.id_keys, keys)
        when = np.full(len(merged), np.iinfo(np.int64).min)
        when[np.searchsorted(merged, self.id_keys)] = self.id_seen
        np.maximum.at(when, np.searchsorted(merged, keys), seen)
        if len(merged) > self.config.max_ids:
            latest = np.sort(np.argsort(-when, kind="stable")[: self.config.max_ids])
            merged, when = merged[latest], when[latest]
        before = encoder.find_ids(self.id_keys, merged)
        for arrays in (self.weights, self.first, self.second):
            rows = np.zeros((len(merged), self.config.token_dim), np.float32)
            rows[before >= 0] = arrays["encoder.ids"][before[before >= 0]]
            arrays["encoder.ids"] = rows
        self.id_keys, self.id_seen = merged, when
        return encoder.find_ids(merged, keys)

    def finish(self) -> None:
        """The first fit is done; what only going on with it would need is forgotten."""
        self.fitted, self.span, self.losses, self.stopping = True, None, [], Stopping()

    def save(self, path: Path) -> None:
        """Write a checkpoint; whole or not at all.

        Raises:
            ArtifactError: it cannot be written.
        """
        arrays: dict[str, npt.NDArray[Any]] = {"usage": self.usage, "id_keys": self.id_keys, "id_seen": self.id_seen}
        parts = ((WEIGHT, self.weights), (FIRST, self.first), (SECOND, self.second), (BEST, self.stopping.parameters))
        for prefix, named in parts:
            arrays |= {prefix + name: values for name, values in named.items()}
        told = {
            "config": self.config.model_dump(mode="json"),
            "rng": self.rng.bit_generator.state,
            "updates": self.updates,
            "step": self.step,
            "fitted": self.fitted,
            "started": self.started,
            "window": None if self.window is None else self.window.model_dump(),
            "metrics": self.metrics,
            "span": None if self.span is None else self.span.model_dump(),
            "losses": self.losses,
            "stopping": {"best": self.stopping.best, "worse": self.stopping.worse},
        }
        aside = path.with_name(f".{path.name}-writing")  # one left by a crash is written over
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as stream:
                stream.write(tensors_to_bytes(arrays, {"format": FORMAT, "state": json.dumps(told)}))
                stream.flush()
                os.fsync(stream.fileno())
            aside.rename(path)
        except OSError as error:
            raise ArtifactError(f"checkpoint {path} cannot be written: {error}; check space and permissions") from error

    @classmethod
    def load(cls, path: Path) -> TrainingState:
        """Read a checkpoint.

        Raises:
            ArtifactError: it is missing, damaged or of another format, or an array does not fit its settings.
        """
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ArtifactError(f"{path} is no {FORMAT} file; train anew")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            told = json.loads(metadata["state"])
            config = TrainingConfig.model_validate(told["config"])
            looked = told.get("stopping", {"best": math.inf, "worse": 0})  # an earlier program's
            shapes = _weight_shapes(config) | {"encoder.ids": (len(arrays["id_keys"]), config.token_dim)}
            checkpoint_arrays.check(path, arrays, config, shapes, watched=math.isfinite(looked["best"]))
            rng = np.random.default_rng()
            rng.bit_generator.state = told["rng"]
            window, span = told["window"], told.get("span")
            return cls(
                config=config,
                weights=below(WEIGHT, arrays),
                first=below(FIRST, arrays),
                second=below(SECOND, arrays),
                rng=rng,
                usage=arrays["usage"],
                id_keys=arrays["id_keys"],
                id_seen=arrays["id_seen"],
                updates=told["updates"],
                step=told["step"],
                fitted=told["fitted"],
                started=told["started"],
                window=None if window is None else TrainingWindow.model_validate(window),
                metrics=told["metrics"],
                span=None if span is None else LearnedSpan.model_validate(span),
                losses=told.get("losses", []),
                stopping=Stopping(looked["best"], looked["worse"], below(BEST, arrays)),
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"checkpoint {path} cannot be read: {error}; train anew") from error


def _settings_of(manifest: ArtifactManifest) -> dict[str, Any]:
    """The settings that a manifest tells of; schedules it does not."""
    same = {"name", "labels", "layers", "codewords", "dim", "token_dim", "hidden", "features"}
    settings = manifest.model_dump(include=same)
    if manifest.prior is None:
        return settings | {"prior": {"export": False}}
    of_prior = {"half_lives_s": manifest.prior.half_lives_s, "hidden": manifest.prior.hidden}
    return settings | {"prior": of_prior, "temperature": manifest.prior.temperature}


def _weight_shapes(config: TrainingConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of each weight that a configuration implies, but for the id rows."""
    shapes: dict[str, tuple[int, ...]] = {f"encoder.{n}": shape for n, shape in encoder_shape(config).weights().items()}
    shapes |= {f"prior.{name}": shape for name, shape in prior_shape(config).weights().items()}
    return shapes | {"codewords": (len(config.labels), config.layers, config.codewords, config.dim)}


def _check_shapes(config: TrainingConfig, weights: dict[str, Float32Array]) -> None:
    for name, shape in _weight_shapes(config).items():
        found = weights[name].shape if name in weights else None
        if found != shape:
            raise ArtifactError(
                f"{name} of the model to go on from has shape {found}, the settings imply {shape}; "
                "use the settings that it was trained with"
            )


def below(prefix: str, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
