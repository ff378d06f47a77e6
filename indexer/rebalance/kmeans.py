"""Balanced k-means: clusters whose sizes stay between a floor and a cap."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.rebalance import kmeans_kernels as kernels

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_ROUNDS: Final = 8
_SAMPLE: Final = 8_192
_AT_ONCE: Final = 256
"""More clusters than that are cut in two steps or more: time grows with n log k then, not n k."""


def balanced_kmeans(x: F32, k: int, floor: int, cap: int, seed: int) -> tuple[I64, F32]:
    """Cut n points into k clusters of ``floor`` to ``cap`` points each.

    Lloyd's rounds on a sample from a k-means++ start, then every point takes the nearest cluster that has room, the
    closest first; clusters below the floor draw the points that lose least by moving. Holds a few numbers for each
    point, however many clusters there are, and leaves the interpreter to others while it computes.

    Args:
        x: (n, d) float32.
        k: number of clusters, ``k * floor <= n <= k * cap``.
        floor: least points of a cluster.
        cap: most points of a cluster.
        seed: of the start.

    Returns:
        labels (n,) int64 and centroids (k, d) float32, the means of the members.
    """
    if not k * floor <= len(x) <= k * cap:
        raise ValueError(f"{len(x)} points do not fit {k} clusters of {floor} to {cap}")
    rng = np.random.default_rng(seed)
    labels = _labels(np.ascontiguousarray(x, np.float32), k, floor, cap, rng)
    centroids = np.zeros((k, x.shape[1]), np.float32)
    kernels.means(x, labels, centroids)
    return labels, centroids


def _labels(x: F32, k: int, floor: int, cap: int, rng: np.random.Generator) -> I64:
    """(n,) clusters; more of them than are cut at once are first cut into groups of about equally many."""
    groups = k if k <= _AT_ONCE else min(_AT_ONCE, math.ceil(math.sqrt(k)))
    share = np.diff(np.arange(groups + 1) * k // groups)
    sample = x if len(x) <= _SAMPLE else x[rng.choice(len(x), _SAMPLE, replace=False)]
    centroids = kernels.start(sample, rng.random(groups))
    kernels.lloyd(sample, centroids, _ROUNDS)
    labels = kernels.fill(x, centroids, share * cap)
    kernels.raise_to_floor(x, centroids, labels, share * floor)
    if groups == k:
        return np.asarray(labels, np.int64)
    out = np.empty(len(x), np.int64)
    first = 0
    for group, clusters in enumerate(share.tolist()):
        here = np.flatnonzero(labels == group)
        out[here] = first + _labels(x[here], clusters, floor, cap, rng)
        first += clusters
    return out
