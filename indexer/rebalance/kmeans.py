"""Balanced k-means: clusters whose sizes stay between a floor and a cap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_ROUNDS = 8
_SAMPLE = 4_096


def balanced_kmeans(x: F32, k: int, floor: int, cap: int, seed: int) -> tuple[I64, F32]:
    """Cut n points into k clusters of ``floor`` to ``cap`` points each.

    Lloyd's rounds on a sample from a k-means++ start, then every point takes the nearest cluster that has room, the
    closest first; clusters below the floor draw the points that lose least by moving.

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
    sample = x if len(x) <= _SAMPLE else x[rng.choice(len(x), _SAMPLE, replace=False)]
    centroids = _start(sample, k, rng)
    for _ in range(_ROUNDS):
        labels = _distances(sample, centroids).argmin(1)
        centroids = _means(sample, labels, centroids)
    labels = _fill(_distances(x, centroids), cap)
    _raise_to_floor(_distances(x, centroids), labels, floor)
    return labels, _means(x, labels, centroids)


def _distances(x: F32, centroids: F32) -> F32:
    """(n, k) squared distances, up to a term that is the same for all clusters of a point."""
    return np.asarray((centroids * centroids).sum(1)[None, :] - 2 * (x @ centroids.T), np.float32)


def _start(x: F32, k: int, rng: np.random.Generator) -> F32:
    chosen = [int(rng.integers(len(x)))]
    nearest = ((x - x[chosen[0]]) ** 2).sum(1, dtype=np.float64)
    for _ in range(k - 1):
        total = nearest.sum()
        # All remaining points coincide with chosen ones: any will do, balancing shares them out.
        pick = int(rng.choice(len(x), p=nearest / total)) if total > 0 else int(rng.integers(len(x)))
        chosen.append(pick)
        nearest = np.minimum(nearest, ((x - x[pick]) ** 2).sum(1, dtype=np.float64))
    return x[chosen].copy()


def _means(x: F32, labels: I64, previous: F32) -> F32:
    sums = np.zeros(previous.shape, np.float64)
    np.add.at(sums, labels, x)
    counts = np.bincount(labels, minlength=len(previous))
    full = counts > 0
    out = previous.copy()
    out[full] = (sums[full] / counts[full, None]).astype(np.float32)
    return out


def _fill(distance: F32, cap: int) -> I64:
    """(n,) nearest cluster with room; a cluster takes the closest of those that ask."""
    n, k = distance.shape
    labels = np.full(n, -1, np.int64)
    room = np.full(k, cap, np.int64)
    open_distance = distance.copy()
    while True:
        asking = np.flatnonzero(labels < 0)
        if not len(asking):
            return labels
        wish = open_distance[asking].argmin(1)
        for cluster in np.unique(wish).tolist():
            here = asking[wish == cluster]
            if len(here) > room[cluster]:
                here = here[np.argsort(distance[here, cluster], kind="stable")[: room[cluster]]]
            labels[here] = cluster
            room[cluster] -= len(here)
            if room[cluster] == 0:
                open_distance[:, cluster] = np.inf


def _raise_to_floor(distance: F32, labels: I64, floor: int) -> None:
    """Move the points that lose least into clusters below the floor; in place."""
    counts = np.bincount(labels, minlength=distance.shape[1])
    for cluster in np.flatnonzero(counts < floor).tolist():
        while counts[cluster] < floor:
            spare = counts - floor
            spare[cluster] = 0
            movable = np.flatnonzero(spare[labels] > 0)
            loss = distance[movable, cluster] - distance[movable, labels[movable]]
            for point in movable[np.argsort(loss, kind="stable")].tolist():
                if counts[cluster] == floor:
                    break
                if counts[labels[point]] > floor:
                    counts[labels[point]] -= 1
                    labels[point] = cluster
                    counts[cluster] += 1
