"""Keeping codes in use: when layers start, from where, and what over-used codewords pay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from model_runtime import fixed_point as fx
from model_runtime.kmeans import kmeans, nearest

if TYPE_CHECKING:
    import numpy.typing as npt

_ITERATIONS: Final = 8


class Balance:
    """Delayed start, layer-wise activation, and the EMA of code usage.

    Args:
        shape: (F, L, M).
        start_step: the first layer joins at this step (S_0); before it only embeddings are trained.
        layer_steps: each further layer joins so many steps later (S_delta).
        decay: of the usage average, per step.
        allowed: a codeword may be used this many times its fair share 1 / M before it pays.
        sharpness: temperature of the soft assignment through which the penalty reaches codewords.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        start_step: int,
        layer_steps: int,
        decay: float,
        allowed: float,
        sharpness: float,
    ) -> None:
        self._layers = shape[1]
        self._start_step, self._layer_steps = start_step, max(layer_steps, 1)
        self._decay, self._allowed, self._sharpness = decay, allowed, sharpness
        self.usage = torch.full(shape, 1 / shape[2])

    def active_layers(self, step: int) -> int:
        """How many layers take part in a step, 0 to L."""
        if step < self._start_step:
            return 0
        return min(self._layers, 1 + (step - self._start_step) // self._layer_steps)

    def penalty(self, facet: int, codes: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """Cost of over-use of one facet's codewords, and the update of their usage.

        Args:
            facet: which.
            codes: (n, layers) int64 and
            distances: (n, layers, M) as of :func:`model_runtime.training.losses.quantise`.

        Returns:
            scalar; its gradient moves over-used codewords away from what they would win.
        """
        n, layers, size = distances.shape
        for layer in range(layers):
            share = torch.bincount(codes[:, layer], minlength=size).to(torch.float32) / n
            self.usage[facet, layer].mul_(self._decay).add_(share, alpha=1 - self._decay)
        excess = (self.usage[facet, :layers] * size / self._allowed - 1).clamp_min(0)
        wins = torch.softmax(-distances / self._sharpness, -1).mean(0)
        return (excess * wins).sum()


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
