"""How far the embeddings and codes of the same items moved from one model to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.refresh import FacetDrift
from schemas.store import StoreMeta

F16 = npt.NDArray[np.float16]
U32 = npt.NDArray[np.uint32]

LOW: Final = 5.0
"""The percentile that is told beside the mean."""


class Drift:
    """Counts batch by batch; eight bytes an item and facet are kept.

    Args:
        before, after: stores of the two models. Codes are compared where they are alike in shape, embeddings where
            they are of one length; nothing where there are not as many facets.
    """

    def __init__(self, before: StoreMeta, after: StoreMeta) -> None:
        self._facets = after.facets if after.facets == before.facets else 0
        self._codes = (before.layers, before.codewords) == (after.layers, after.codewords)
        self._dim = before.dim if before.dim == after.dim else 0
        self._changed = np.zeros(self._facets, np.int64)
        self._similar: list[npt.NDArray[np.float32]] = []
        self._items = 0

    def add(self, old_vectors: Sequence[bytes], old_raw: U32, vectors: F16, raw: U32) -> None:
        """Take n items: bytes of their old embeddings, (n, F) old raw indices, (n, F, d) and (n, F) new ones."""
        self._items += len(raw)
        if not self._facets:
            return
        if self._codes:
            self._changed += (old_raw != raw).sum(0)
        if self._dim:
            old = np.frombuffer(b"".join(old_vectors), np.float16).reshape(vectors.shape).astype(np.float32)
            new = vectors.astype(np.float32)
            lengths = np.sqrt(np.einsum("nfd,nfd->nf", old, old) * np.einsum("nfd,nfd->nf", new, new))
            self._similar.append(np.einsum("nfd,nfd->nf", old, new) / np.maximum(lengths, np.finfo(np.float32).tiny))

    def facets(self) -> tuple[FacetDrift, ...]:
        """What was found, facet by facet; nothing is known of no items."""
        if not self._items:
            return (FacetDrift(),) * self._facets
        similar = np.concatenate(self._similar) if self._similar else None
        return tuple(
            FacetDrift(
                changed=float(self._changed[facet]) / self._items if self._codes else None,
                similarity=None if similar is None else float(similar[:, facet].mean()),
                similarity_low=None if similar is None else float(np.percentile(similar[:, facet], LOW)),
            )
            for facet in range(self._facets)
        )
