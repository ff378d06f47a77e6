"""Compiled steps of routing; one thread, without the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.compiling import njit

A = Any


@njit(cache=True, nogil=True)
def hosts(
    parents: A,
    items: A,
    points: A,
    small: A,
    held: A,
    its_parents: A,
    centroids: A,
    next_leaf: int,
    room: int,
    few: int,
) -> A:
    """(m,) the leaf of each new raw index.

    ``parents``, ``items`` (m,) and ``points`` (m, d) are of the raw indices, by ascending parent; ``small``, ``held``
    and ``its_parents`` (s,) are leaves that take more, their members, their parents, ascending; ``centroids`` is
    (leaves, d). While fewer than ``few`` leaves of its parent take more, a raw index opens one.
    """
    m = parents.shape[0]
    out = np.empty(m, np.int64)
    held = held.copy()
    opened = np.empty(m, np.int64)  # by which raw index each new leaf was
    opened_held = np.empty(m, np.int64)
    count, first, begin, end = 0, 0, 0, 0
    for i in range(m):
        if i == 0 or parents[i] != parents[i - 1]:
            first = count
            begin = np.searchsorted(its_parents, parents[i])
            end = np.searchsorted(its_parents, parents[i], side="right")
        taking, best, least = 0, -1, np.inf
        for at in range(begin, end + count - first):
            known = at < end
            new = first + at - end
            if (held[at] if known else opened_held[new]) >= room:
                continue
            taking += 1
            centre = centroids[small[at]] if known else points[opened[new]]
            gap = 0.0
            for j in range(points.shape[1]):
                gap += (centre[j] - points[i, j]) ** 2
            if gap < least:
                best, least = at, gap
        if taking < few:
            opened[count], opened_held[count] = i, 0
            best = end + count - first
            count += 1
        if best < end:
            held[best] += items[i]
            out[i] = small[best]
        else:
            opened_held[first + best - end] += items[i]
            out[i] = next_leaf + first + best - end
    return out
