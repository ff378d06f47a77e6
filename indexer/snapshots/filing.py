"""Which leaf of a full snapshot an item that changed since belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.ragged import spans
from indexer.routing import nearest_of

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Routes:
    """Routes and leaves of one facet of a full snapshot.

    Attributes:
        leaves: (m,) ids, ascending; centroids (m, d) float32.
        raws: (r,) raw indices with a route, ascending.
        offsets: (r + 1,) where the candidates of each begin in ``targets``.
    """

    leaves: I64
    centroids: npt.NDArray[np.float32]
    raws: I64
    offsets: I64
    targets: npt.NDArray[np.uint32]

    def file(self, raws: I64, wishes: I64, present: I64, vectors: npt.NDArray[np.float16]) -> I64:
        """(n,) the leaf of each of n items.

        Of the candidates that the full snapshot knows for the raw index: the leaf that the live view has chosen if it
        is one of them (it always is until that leaf, or one that it was merged into, is rebalanced), else the leaf
        where the full snapshot has the item, else the one with the nearest centroid. A raw index without a route is
        newer than the full snapshot; its items lie where the live view has put them.

        Args:
            raws: (n,) raw indices.
            wishes: (n,) leaves in the live view.
            present: (n,) leaves in the full snapshot; -1 of items that it lacks.
            vectors: (n, d) facet embeddings.
        """
        out = wishes.copy()
        if not len(self.raws) or not len(raws):
            return out
        at = np.minimum(np.searchsorted(self.raws, raws), len(self.raws) - 1)
        known = np.flatnonzero(self.raws[at] == raws)
        at = at[known]
        counts = self.offsets[at + 1] - self.offsets[at]
        candidates = self.targets[spans(self.offsets[at], counts)].astype(np.int64)
        row_of = np.repeat(np.arange(len(known)), counts)
        granted = _any_of(candidates == wishes[known][row_of], row_of, len(known))
        stays = ~granted & _any_of(candidates == present[known][row_of], row_of, len(known))
        out[known[stays]] = present[known[stays]]
        lost = ~granted & ~stays
        if lost.any():
            slots = np.searchsorted(self.leaves, candidates[lost[row_of]])
            nearest = nearest_of(vectors[known[lost]].astype(np.float32), self.centroids, slots, counts[lost])
            out[known[lost]] = self.leaves[nearest]
        return out


def _any_of(hits: npt.NDArray[np.bool_], row_of: I64, rows: int) -> npt.NDArray[np.bool_]:
    return np.bincount(row_of[hits], minlength=rows) > 0
