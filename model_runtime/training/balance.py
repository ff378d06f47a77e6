"""Keeping codes in use: when layers start and from where, and what holds back over-used codewords.

What holds them back is one of several means, all behind :class:`OverUse`, which alone does nothing but count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from model_runtime import fixed_point as fx
from model_runtime.kmeans import kmeans, nearest

if TYPE_CHECKING:
    import numpy.typing as npt

    from schemas.training import OverUseConfig

_ITERATIONS: Final = 8
_SHARPNESS: Final = 0.1
_LEAST: Final = 1e-4


class OverUse:
    """No means at all: the nearest codeword is chosen, usage is counted.

    Args:
        config: strengths.
        usage: (F, L, M) float32, average share of the items that each codeword got of late; updated in place.
    """

    gradient = True  # whether codewords learn by gradient

    def __init__(self, config: OverUseConfig, usage: torch.Tensor) -> None:
        self.config = config
        self.usage = usage

    def choose(self, facet: int, layer: int, distances: torch.Tensor) -> torch.Tensor:
        """Codes (n,) int64 for (n, M) squared distances."""
        del facet, layer
        return distances.argmin(-1)

    def penalty(self, facet: int, distances: torch.Tensor) -> torch.Tensor:
        """Cost of over-use: scalar, for (n, layers, M) distances with gradient to the codewords."""
        del facet
        return distances.new_zeros(())

    def used(self, facet: int, codes: torch.Tensor, vectors: torch.Tensor, weight: torch.Tensor) -> None:
        """Take note of a step.

        Args:
            facet: which.
            codes: (n, layers) int64 and
            vectors: (n, d), what was quantised.
            weight: (n,) how much each counts for its codewords.
        """
        del vectors
        for layer in range(codes.shape[1]):
            usage = self.usage[facet, layer].mul_(self.config.decay)
            usage.index_add_(0, codes[:, layer], weight * ((1 - self.config.decay) / weight.sum()))

    def relative(self, facet: int, layer: int) -> torch.Tensor:
        """(M,) usage in units of the fair share."""
        return self.usage[facet, layer] * self.usage.shape[2]


class Penalty(OverUse):
    """Codewords used more than allowed pay through a soft assignment, which moves them from what they would win."""

    def penalty(self, facet: int, distances: torch.Tensor) -> torch.Tensor:
        """As above."""
        layers = distances.shape[1]
        excess = (self.usage[facet, :layers] * distances.shape[2] / self.config.allowed - 1).clamp_min(0)
        wins = torch.softmax(-distances / _SHARPNESS, -1).mean(0)
        return self.config.weight * (excess * wins).sum()


class Disturbance(OverUse):
    """Codewords below ``1 / allowed`` of the fair share look nearer: distances times r_k (Streaming VQ)."""

    def choose(self, facet: int, layer: int, distances: torch.Tensor) -> torch.Tensor:
        """As above."""
        return (distances * (self.relative(facet, layer) * self.config.allowed).clamp(_LEAST, 1)).argmin(-1)


class BiasedSelection(OverUse):
    """Distances grow with the log of historical usage, so that cold codewords are favoured throughout (RankGraph-2)."""

    def choose(self, facet: int, layer: int, distances: torch.Tensor) -> torch.Tensor:
        """As above."""
        scale = self.config.weight * distances.amin(-1).mean()
        return (distances + scale * self.relative(facet, layer).clamp_min(_LEAST).log()).argmin(-1)


class MovingAverage(Disturbance):
    """Codewords are moving averages of their members' residuals, rare items counting more (Streaming VQ).

    Args:
        config: strengths.
        usage: as for :class:`OverUse`.
        codewords: (F, L, M, d), moved in place.
    """

    gradient = False

    def __init__(self, config: OverUseConfig, usage: torch.Tensor, codewords: torch.Tensor) -> None:
        super().__init__(config, usage)
        self._codewords = codewords

    @torch.no_grad()
    def used(self, facet: int, codes: torch.Tensor, vectors: torch.Tensor, weight: torch.Tensor) -> None:
        """As above; a codeword keeps the weight of its past, which is its usage."""
        kept = self.usage[facet].clamp_min(_LEAST) * self.config.decay
        super().used(facet, codes, vectors, weight)
        residual = vectors.detach()
        gain = weight * ((1 - self.config.decay) / weight.sum())
        for layer in range(codes.shape[1]):
            words, code = self._codewords[facet, layer], codes[:, layer]
            picked = words.index_select(0, code)
            gained = torch.zeros_like(kept[layer]).index_add(0, code, gain)
            total = torch.zeros_like(words).index_add(0, code, residual * gain[:, None])
            words.copy_((words * kept[layer, :, None] + total) / (kept[layer] + gained)[:, None])
            residual = residual - picked


def over_use(config: OverUseConfig, usage: torch.Tensor, codewords: torch.Tensor) -> OverUse:
    """The means that a configuration names."""
    if config.kind == "moving_average":
        return MovingAverage(config, usage, codewords)
    kinds = {"none": OverUse, "penalty": Penalty, "disturbance": Disturbance, "biased": BiasedSelection}
    return kinds[config.kind](config, usage)


def active_layers(step: int, layers: int, start_step: int, layer_steps: int) -> int:
    """How many layers take part in a step: none before S_0, then one more every S_delta steps."""
    if step < start_step:
        return 0
    return min(layers, 1 + (step - start_step) // max(layer_steps, 1))


def start_layer(
    vectors: npt.NDArray[np.float32], codewords: npt.NDArray[np.float32], layer: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A layer's codewords by k-means on what the layers before it leave over now: (F, M, d).

    Args:
        vectors: (n, F, d) current embeddings.
        codewords: (F, L, M, d), of which the first ``layer`` layers are read.
        layer: which is to start.
        rng: picks the starts.
    """
    facets, _, size, _ = codewords.shape
    books = []
    for facet in range(facets):
        residuals = fx.snap(vectors[:, facet], fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
        for earlier in range(layer):
            book = fx.snap(codewords[facet, earlier], fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
            residuals = fx.snap(residuals - book[nearest(residuals, book)[0]], fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
        books.append(kmeans(residuals, size, _ITERATIONS, rng))
    return np.stack(books)


def revive(
    vectors: npt.NDArray[np.float32], codewords: npt.NDArray[np.float32], least: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The codewords, with each that next to nothing chooses moved onto an item of the fullest one: (F, L, M, d).

    Without this a codeword that items left stays behind for good, as neither softmax nor anchor reach it. Layers are
    taken in order, each on what the layers before it leave over now.

    Args:
        vectors: (n, F, d) current embeddings.
        codewords: (F, L, M, d); left as they are.
        least: share of the fair share 1 / M below which a codeword is moved.
        rng: picks the items.
    """
    moved = fx.snap(codewords, fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
    facets, layers, size, _ = moved.shape
    for facet in range(facets):
        residuals = fx.snap(vectors[:, facet], fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
        for layer in range(layers):
            book = moved[facet, layer]
            codes, _ = nearest(residuals, book)
            counts = np.bincount(codes, minlength=size)
            for word in np.flatnonzero(counts < least * len(codes) / size).tolist():
                book[word] = residuals[rng.choice(np.flatnonzero(codes == counts.argmax()))]
                codes, _ = nearest(residuals, book)
                counts = np.bincount(codes, minlength=size)
            residuals = fx.snap(residuals - book[codes], fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
    return moved
