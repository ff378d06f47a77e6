"""The learned prior g: how likely an item is engaged next, from how often it was of late and how old it is.

    x = (log2(1 + decayed count of each half-life), log2(1 + age in minutes)) / 8
    h = relu(x W + b) for each hidden layer;  g = h w

Retrieval ranks by similarity / temperature + g, as training did; g alone is a popularity and freshness ranking.
The logarithm is taken piecewise linearly between powers of two and everything is carried on grids, as in
:mod:`model_runtime.fixed_point`: the same counts and age give the same bits in every batch and on every machine.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model_runtime import fixed_point as fx
from schemas.errors import ArtifactError
from schemas.prior import BITS, CARRIED_LIMIT, LIMIT, SCALE, UNIT_S, LearnedPrior

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

_STEP: Final = 2.0**-BITS


@dataclass(frozen=True, slots=True)
class PriorShape:
    """What fixes the shapes of a prior's weights: half-lives of the counts it reads, and hidden widths."""

    half_lives_s: tuple[int, ...]
    hidden: tuple[int, ...]

    def __post_init__(self) -> None:
        for width in (len(self.half_lives_s) + 1, *self.hidden):
            if not 1 <= width <= fx.MAX_SUM:
                raise ValueError(f"prior width {width} is outside 1 to {fx.MAX_SUM}, where sums stay exact")

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each weight. There is no last bias: a ranking would not see it."""
        widths = [len(self.half_lives_s) + 1, *self.hidden, 1]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            shapes[f"layer{layer}.weight"] = (inputs, outputs)
            if layer < len(self.hidden):
                shapes[f"layer{layer}.bias"] = (outputs,)
        return shapes


def initial_weights(shape: PriorShape, rng: np.random.Generator) -> dict[str, Float32Array]:
    """Weights to begin with: random layers, the last one zero, so that training starts without a prior."""
    last = f"layer{len(shape.hidden)}.weight"
    weights: dict[str, Float32Array] = {}
    for name, size in shape.weights().items():
        if name == last or name.endswith("bias"):
            weights[name] = np.zeros(size, np.float32)
        else:
            weights[name] = rng.standard_normal(size, np.float32) * np.float32((2 / size[0]) ** 0.5)
    return weights


def freeze(weights: dict[str, Float32Array]) -> dict[str, Float32Array]:
    """Weights on the grid of the frozen prior."""
    return {name: fx.snap(values, BITS, LIMIT) for name, values in weights.items()}


def inputs(decayed: Float64Array, age_s: npt.NDArray[np.floating]) -> Float64Array:
    """What the first layer sees, on the grid: (..., W + 1).

    Args:
        decayed: (..., W) decayed engagement counts, at least 0.
        age_s: (...,) seconds since creation; an item from the future counts as new.
    """
    minutes = np.maximum(np.asarray(age_s, np.float64), 0) / UNIT_S
    raw = np.concatenate([decayed, minutes[..., None]], axis=-1)
    mantissa, exponent = np.frexp(raw + 1)
    raw = (exponent - 2 + 2 * mantissa) * SCALE  # log2, exact at powers of two and linear between them
    gridded: Float64Array = np.rint(raw / _STEP) * _STEP
    return gridded


class Prior:
    """A frozen prior. Stateless: safe to share between threads.

    Args:
        shape: half-lives and widths.
        weights: grid values by name (:meth:`PriorShape.weights`, :func:`freeze`).
        temperature: similarities are divided by it before g is added.
    """

    def __init__(self, shape: PriorShape, weights: dict[str, Float32Array], temperature: float) -> None:
        self.half_lives_s = shape.half_lives_s
        self.temperature = temperature
        self._layers = [
            (
                weights[f"layer{layer}.weight"].astype(np.float64),
                weights.get(f"layer{layer}.bias", np.zeros(1, np.float32)).astype(np.float64),
            )
            for layer in range(len(shape.hidden) + 1)
        ]

    def learned(self, half_lives_s: tuple[int, ...]) -> LearnedPrior:
        """As an index of a store with these half-lives evaluates it.

        Raises:
            ArtifactError: as :meth:`windows`.
        """
        *hidden, (last, _) = self._layers
        parameters = [values for weight, bias in hidden for values in (weight.ravel(), bias)]
        return LearnedPrior(
            windows=self.windows(half_lives_s),
            widths=(*(len(weight) for weight, _ in self._layers), 1),
            parameters=tuple(np.concatenate([*parameters, last.ravel()]).tolist()),
            temperature=self.temperature,
        )

    def windows(self, half_lives_s: tuple[int, ...]) -> tuple[int, ...]:
        """Which of a store's windows hold the counts that this prior reads, in its order.

        Raises:
            ArtifactError: the store does not count one of them.
        """
        missing = [half_life for half_life in self.half_lives_s if half_life not in half_lives_s]
        if missing:
            raise ArtifactError(
                f"the model's prior reads counts with a half-life of {missing[0]} s, this index counts "
                f"{list(half_lives_s)}; set counters.half_lives_s for a new index, or train with prior.half_lives_s"
            )
        return tuple(half_lives_s.index(half_life) for half_life in self.half_lives_s)

    def score(self, decayed: Float64Array, age_s: npt.NDArray[np.floating]) -> Float32Array:
        """The prior g of n items: (n,) float32, comparable within one model only.

        Args:
            decayed: (n, W) engagements, each weighing ``2 ** (-its age / half-life)``, in the order of
                ``half_lives_s``.
            age_s: (n,) seconds since creation.
        """
        rows = inputs(decayed, age_s)
        for layer, (weight, bias) in enumerate(self._layers):
            rows = rows @ weight + bias
            if layer + 1 < len(self._layers):
                rows = np.clip(np.rint(rows / _STEP) * _STEP, 0, CARRIED_LIMIT)
        score: Float32Array = rows[:, 0].astype(np.float32)
        return score
