"""Multifaceted residual quantisation (MF-RQ): F codebooks of L layers with M codewords, assigned in parallel.

    r_0[f] = e[f];  k_l[f] = argmin_k |r_(l-1)[f] - C[f, l, k]|^2;  r_l[f] = r_(l-1)[f] - C[f, l, k_l[f]]

Distances are exact (see :mod:`model_runtime.fixed_point`) and ties go to the first codeword, so the same
vector has the same code in every batch and on every machine.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from model_runtime.fixed_point import CODEWORD_BITS

Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]

_VECTOR_BITS: Final = 24  # every float16 is a multiple of 2^-24
_SCORES: Final = 1 << 19  # float64 scores at a time: 4 MiB, in cache


def raw_indices(codes: Int32Array, codewords: int) -> npt.NDArray[np.uint32]:
    """Codes (..., L) as mixed-radix integers (...), the first layer most significant."""
    weights = codewords ** np.arange(codes.shape[-1] - 1, -1, -1, dtype=np.int64)
    raw: npt.NDArray[np.uint32] = (codes.astype(np.int64) * weights).sum(-1).astype(np.uint32)
    return raw


def reconstruct(codes: Int32Array, codewords: Float32Array) -> Float32Array:
    """Sum of the picked codewords: (n, F, d) for codes (n, F, L) and codewords (F, L, M, d)."""
    facets, layers = codewords.shape[:2]
    picked = codewords[np.arange(facets)[:, None], np.arange(layers), codes]
    total: Float32Array = picked.sum(axis=2, dtype=np.float32)
    return total


def too_long(codewords: Float32Array) -> bool:
    """Whether codewords (F, L, M, d) are so long that distances could leave the exact range.

    A score is |c|^2 - 2 r.c in units of 2^-40, so it must stay below 2^13. By Cauchy-Schwarz all partial sums do if the
    lengths do, a residual being at most as long as a unit vector and one codeword of each earlier layer.
    Never true for dimensions up to 64.
    """
    longest = np.linalg.norm(codewords.astype(np.float64), axis=-1).max(axis=2)
    residual = 1.01 + np.cumsum(longest, axis=1) - longest
    return bool((2 * residual * longest + longest**2).max() >= 2.0 ** (53 - _VECTOR_BITS - CODEWORD_BITS))


class Codebook:
    """Frozen codewords on a device.

    Args:
        codewords: (F, L, M, d) float32, multiples of 2^-16 below 2 in size, not :func:`too_long`.
        device: where to compare.
    """

    def __init__(self, codewords: Float32Array, device: torch.device) -> None:
        self.codewords = codewords
        self._device = device
        facets, layers, size, dim = codewords.shape
        whole = torch.from_numpy(codewords.astype(np.float64) * 2.0**CODEWORD_BITS).to(device)
        # Residuals are carried in units of 2^-24, so that |c|^2 - 2 r.c comes in units of 2^-40.
        self._norms = [(whole[:, layer] ** 2).sum(-1)[:, None] * 2.0**8 for layer in range(layers)]
        self._minus_twice = [(-2 * whole[:, layer]).transpose(1, 2).contiguous() for layer in range(layers)]
        self._rows = [(whole[:, layer] * 2.0**8).reshape(facets * size, dim) for layer in range(layers)]
        self._first_row = torch.arange(facets, device=device)[:, None] * size
        self._chunk = max(16, _SCORES // (facets * size))

    def assign(self, vectors: Float16Array) -> Int32Array:
        """Codes (n, F, L) of facet vectors (n, F, d) of length 1."""
        n, facets = vectors.shape[:2]
        codes = np.empty((n, facets, len(self._rows)), np.int32)
        for start in range(0, n, self._chunk):
            part = torch.from_numpy(vectors[start : start + self._chunk]).to(self._device)
            residuals = part.transpose(0, 1).to(torch.float64, memory_format=torch.contiguous_format)
            residuals = residuals.contiguous().mul_(2.0**_VECTOR_BITS)
            for layer, (norms, minus_twice, rows) in enumerate(
                zip(self._norms, self._minus_twice, self._rows, strict=True)
            ):
                scores = torch.baddbmm(norms, residuals, minus_twice)
                nearest = self._first_minimum(scores)
                codes[start : start + self._chunk, :, layer] = nearest.T.cpu().numpy()
                if layer + 1 < len(self._rows):
                    picked = rows.index_select(0, (nearest + self._first_row).ravel())
                    residuals -= picked.view_as(residuals)
        return codes

    @staticmethod
    def _first_minimum(scores: torch.Tensor) -> torch.Tensor:
        if scores.device.type == "cpu":
            return torch.from_numpy(scores.numpy().argmin(-1))  # as torch's, three times as fast
        return scores.argmin(-1)
