"""How often leaves are read: cheap to count, forgotten by and by, good enough to tell which matter most."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.compiling import njit

A = Any


@njit(cache=True, nogil=True)
def _count(counts: A, facets: int, facet: A, leaf: A) -> None:
    for at in range(leaf.shape[0]):
        row = leaf[at] * facets + facet[at]
        if row < counts.shape[0]:
            counts[row] += 1


class Reads:
    """Reads of each posting list, by row of the members' pool.

    Readers on several threads may lose each other's counts, and those that come while room is made: nothing depends on
    the exact number. Rows count from the next :meth:`forget` on.

    Attributes:
        counts: (rows,) float32; another array after each :meth:`forget`.
    """

    def __init__(self, facets: int) -> None:
        self._facets = facets
        self.counts = np.zeros(0, np.float32)

    def __len__(self) -> int:
        """Rows that count."""
        return len(self.counts)

    def count(self, facet: npt.NDArray[np.int64], leaf: npt.NDArray[np.int64]) -> None:
        """Leaves (n,) of facets (n,) are being read."""
        _count(self.counts, self._facets, facet, leaf)

    def forget(self, share: float, rows: int) -> None:
        """Multiply all counts by ``share`` and have room for ``rows``."""
        counts = np.zeros(rows, np.float32)
        have = min(rows, len(self.counts))
        counts[:have] = self.counts[:have] * np.float32(share)
        self.counts = counts

    def of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(n,) reads of rows, 0 where they don't count yet."""
        known = rows < len(self.counts)
        out = np.zeros(len(rows), np.float32)
        out[known] = self.counts[rows[known]]
        return out
