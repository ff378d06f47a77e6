"""Compiled steps of balanced k-means; one thread, without the GIL, no more than a few numbers a point.

``x`` is (n, d) float32, ``centroids`` (k, d) float32; distances are squared Euclidean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.compiling import njit

A = Any
_REASSOCIATE = {"reassoc", "contract"}  # sums in any order, so that LLVM can take 16 at a time


@njit(cache=True, nogil=True, fastmath=_REASSOCIATE)
def _gap(a: A, b: A) -> A:
    total = np.float32(0)
    for j in range(a.shape[0]):
        gap = a[j] - b[j]
        total += gap * gap
    return total


@njit(cache=True, nogil=True)
def _nearest(point: A, centroids: A, room: A) -> A:
    """The nearest cluster with room, and its distance."""
    best, least = -1, np.float32(np.inf)
    for cluster in range(centroids.shape[0]):
        if room[cluster] > 0:
            gap = _gap(point, centroids[cluster])
            if best < 0 or gap < least:
                best, least = cluster, gap
    return best, least


@njit(cache=True, nogil=True)
def means(x: A, labels: A, centroids: A) -> None:
    """Set the centroids of clusters that have members to their means."""
    sums = np.zeros(centroids.shape, np.float64)
    counts = np.zeros(centroids.shape[0], np.int64)
    for i in range(x.shape[0]):
        counts[labels[i]] += 1
        for j in range(x.shape[1]):
            sums[labels[i], j] += x[i, j]
    for cluster in range(centroids.shape[0]):
        if counts[cluster]:
            for j in range(x.shape[1]):
                centroids[cluster, j] = sums[cluster, j] / counts[cluster]


@njit(cache=True, nogil=True)
def start(x: A, draws: A) -> A:
    """k-means++: as many points of ``x`` as there are ``draws``, (k,) uniform in [0, 1)."""
    n, k = x.shape[0], draws.shape[0]
    chosen = np.empty((k, x.shape[1]), np.float32)
    nearest = np.full(n, np.inf, np.float64)
    pick = min(n - 1, int(draws[0] * n))
    for cluster in range(k):
        if cluster:
            total = nearest.sum()
            if total > 0:
                aim, pick = draws[cluster] * total, n - 1
                for i in range(n):
                    aim -= nearest[i]
                    if aim < 0:
                        pick = i
                        break
            else:  # all that is left coincides with chosen points: any will do, balancing shares them out
                pick = min(n - 1, int(draws[cluster] * n))
        chosen[cluster] = x[pick]
        for i in range(n):
            nearest[i] = min(nearest[i], np.float64(_gap(x[i], chosen[cluster])))
    return chosen


@njit(cache=True, nogil=True)
def lloyd(x: A, centroids: A, rounds: int) -> None:
    """Rounds of k-means, in place, until nothing moves."""
    labels = np.full(x.shape[0], -1, np.int64)
    everywhere = np.ones(centroids.shape[0], np.int64)
    for _ in range(rounds):
        moved = False
        for i in range(x.shape[0]):
            cluster, _least = _nearest(x[i], centroids, everywhere)
            if cluster != labels[i]:
                labels[i], moved = cluster, True
        if not moved:
            return
        means(x, labels, centroids)


@njit(cache=True, nogil=True)
def fill(x: A, centroids: A, caps: A) -> A:
    """(n,) nearest cluster with room; a cluster takes the closest of those that ask. ``caps`` (k,) are enough for n."""
    n, k = x.shape[0], centroids.shape[0]
    labels = np.full(n, -1, np.int64)
    room = caps.copy()
    asking = np.arange(n)
    while asking.shape[0]:
        wish = np.empty(asking.shape[0], np.int64)
        gap = np.empty(asking.shape[0], np.float32)
        asked = np.zeros(k, np.int64)
        for at in range(asking.shape[0]):
            wish[at], gap[at] = _nearest(x[asking[at]], centroids, room)
            asked[wish[at]] += 1
        for cluster in range(k):
            if not asked[cluster]:
                continue
            here: A = np.flatnonzero(wish == cluster)
            if asked[cluster] > room[cluster]:
                here = here[np.argsort(gap[here], kind="mergesort")[: room[cluster]]]
            for at in here:
                labels[asking[at]] = cluster
            room[cluster] -= here.shape[0]
        asking = asking[labels[asking] < 0]
    return labels


@njit(cache=True, nogil=True)
def raise_to_floor(x: A, centroids: A, labels: A, floors: A) -> None:
    """Move the points that lose least into clusters below their floor, (k,); in place."""
    counts = np.zeros(centroids.shape[0], np.int64)
    for label in labels:
        counts[label] += 1
    for cluster in range(centroids.shape[0]):
        if counts[cluster] >= floors[cluster]:
            continue
        loss = np.full(labels.shape[0], np.inf, np.float32)
        for i in range(labels.shape[0]):
            own = labels[i]
            if own != cluster and counts[own] > floors[own]:
                loss[i] = _gap(x[i], centroids[cluster]) - _gap(x[i], centroids[own])
        for point in np.argsort(loss, kind="mergesort"):
            own = labels[point]
            if counts[cluster] == floors[cluster]:
                break
            if own != cluster and counts[own] > floors[own]:
                counts[own] -= 1
                labels[point] = cluster
                counts[cluster] += 1
