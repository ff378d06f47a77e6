"""Where the codes of an index come from: learned with the embeddings, or fitted to them afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from model_runtime.training.balance import start_layer

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel

F32 = npt.NDArray[np.float32]


class Coding(Protocol):
    """A choice of facets and of codewords for them.

    Attributes:
        facets: how many are indexed, the first ones; None: all.
    """

    @property
    def facets(self) -> int | None:
        """See above."""
        ...

    def codewords(self, model: FrozenModel, live: F32) -> F32:
        """(F, L, M, d) codewords of the indexed facets.

        Args:
            model: in use.
            live: (n, F, d) vectors of the pool.
        """
        ...


@dataclass(frozen=True, slots=True)
class CoTrained:
    """The model's own codewords."""

    facets: int | None = None

    def codewords(self, model: FrozenModel, live: F32) -> F32:  # noqa: ARG002  # learned, not fitted
        """See :class:`Coding`."""
        return model.codewords[: self.facets]


@dataclass(frozen=True, slots=True)
class PostHoc:
    """Residual k-means on the embeddings of the pool, as many layers and codewords as the model has."""

    seed: int
    facets: int | None = None

    def codewords(self, model: FrozenModel, live: F32) -> F32:
        """See :class:`Coding`."""
        rng = np.random.default_rng(self.seed)
        vectors = live[:, : self.facets]
        books = np.zeros_like(model.codewords[: self.facets])
        for layer in range(books.shape[1]):
            books[:, layer] = start_layer(vectors, books, layer, rng)
        return books
