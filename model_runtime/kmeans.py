"""Lloyd's k-means on grid points, exact and seeded: the number of threads does not change the centroids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from model_runtime import fixed_point as fx

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_ROWS = 1 << 10


def nearest(points: Float32Array, centroids: Float32Array) -> tuple[Int64Array, npt.NDArray[np.float64]]:
    """First nearest centroid of each point and the squared distance to it: (n,) each.

    Args:
        points: (n, d) multiples of 2^-16, d <= 2^10.
        centroids: (k, d) likewise.
    """
    transposed = torch.from_numpy(centroids.astype(np.float64)).T
    norms = (transposed**2).sum(0).numpy()
    labels, distances = np.empty(len(points), np.int64), np.empty(len(points))
    for start in range(0, len(points), _ROWS):
        part = points[start : start + _ROWS].astype(np.float64)
        scores = norms - 2 * (torch.from_numpy(part) @ transposed).numpy()
        labels[start : start + _ROWS] = first = scores.argmin(1)
        own = scores[np.arange(len(part)), first] + (part * part).sum(1)
        distances[start : start + _ROWS] = np.maximum(own, 0)
    return labels, distances


def kmeans(points: Float32Array, k: int, iterations: int, rng: np.random.Generator) -> Float32Array:
    """Centroids on the codeword grid: (k, d) float32.

    Starts from distinct random points; a centroid that lost all its points moves to the point that is
    furthest from its own. With fewer than k points the rest are near-copies of points, one random grid step
    apart.

    Args:
        points: (n, d) float32, n >= 1, inside the codeword limit.
        k: centroids wanted.
        iterations: rounds of assignment and mean.
        rng: picks the start.
    """
    points = fx.snap(points, fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
    n, dim = points.shape
    picked = rng.permutation(n)[:k]
    centroids = points[picked]
    if n < k:
        copies = points[rng.integers(0, n, k - n)]
        jitter = rng.choice(np.array([-1.0, 0.0, 1.0]), (k - n, dim)) * 2.0**-fx.CODEWORD_BITS
        centroids = np.concatenate([centroids, copies + jitter])
    centroids = fx.snap(centroids, fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
    for _ in range(iterations):
        labels, distances = nearest(points, centroids)
        counts = np.bincount(labels, minlength=k)
        totals = np.zeros((k, dim))
        order = np.argsort(labels, kind="stable")
        used = np.flatnonzero(counts)
        starts = (np.cumsum(counts) - counts)[used]
        totals[used] = np.add.reduceat(points[order].astype(np.float64), starts)  # of grid values: exact
        moved = np.where(counts[:, None] > 0, totals / np.maximum(counts, 1)[:, None], centroids)
        empty = np.flatnonzero(counts == 0)[:n]
        furthest = np.argsort(-distances, kind="stable")[: len(empty)]
        useful = distances[furthest] > 0
        moved[empty[useful]] = points[furthest[useful]]
        centroids = fx.snap(moved, fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
    return centroids


def residual_codebook(
    vectors: Float32Array, layers: int, codewords: int, iterations: int, rng: np.random.Generator
) -> Float32Array:
    """One codebook per facet, each layer fitted to what the layers before leave over: (F, L, M, d) float32.

    Args:
        vectors: (n, F, d) unit vectors.
        layers: L.
        codewords: M.
        iterations: rounds of k-means per layer.
        rng: picks the starts.
    """
    books = []
    for facet in range(vectors.shape[1]):
        residuals = fx.snap(vectors[:, facet], fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
        book = []
        for _ in range(layers):
            centroids = kmeans(residuals, codewords, iterations, rng)
            labels, _ = nearest(residuals, centroids)
            residuals = fx.snap(residuals - centroids[labels], fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
            book.append(centroids)
        books.append(np.stack(book))
    return np.stack(books)
