"""Means of embeddings, compiled, without the interpreter's lock."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.compiling import njit
from indexer.half import widen

A = Any
F32 = npt.NDArray[np.float32]


@njit(cache=True, nogil=True)
def _add_up(bits: A, group: A, sums: A) -> None:
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            sums[group[i], j] += widen(bits[i, j])


@njit(cache=True, nogil=True)
def _widened(bits: A, out: A) -> None:
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            out[i, j] = widen(bits[i, j])


def sums(vectors: npt.NDArray[np.float16], group: npt.NDArray[np.integer], groups: int) -> npt.NDArray[np.float64]:
    """(groups, d) sums of (n, d) embeddings; ``group`` is (n,)."""
    out = np.zeros((groups, vectors.shape[1]))
    _add_up(vectors.view(np.uint16), group.astype(np.int64), out)
    return out


def widened(vectors: npt.NDArray[np.float16]) -> F32:
    """(n, d) float32."""
    out = np.empty(vectors.shape, np.float32)
    _widened(vectors.view(np.uint16), out)
    return out
