"""From raw indices to leaves: one candidate normally, several after a split, a shared one after a merge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer import routing_kernels as kernels
from indexer.view import FacetView

I64 = npt.NDArray[np.int64]

_PAIRS = 1 << 18
"""Distances computed at once, at most, unless a single item has more candidates."""
SIBLINGS = 16
"""Small leaves of a first-layer codeword that a new raw index may choose from: fewer mix what is unlike, more have to
be merged again."""


@dataclass(frozen=True, slots=True)
class Routed:
    """Where n items go in one facet.

    Attributes:
        leaves: (n,) leaf ids.
        new_raws: (m,) raw indices met for the first time.
        hosts: (m,) the leaf each of them leads to from now on; ids from ``next_leaf`` on are new leaves.
        opened: how many leaves are new; their ids are consecutive.
    """

    leaves: I64
    new_raws: I64
    hosts: I64
    opened: int


def route(
    facet: FacetView, raws: npt.NDArray[np.uint32], vectors: npt.NDArray[np.float16], next_leaf: int, room: int
) -> Routed:
    """Choose a leaf for each of n items; the view is not changed.

    A raw index with one candidate leads there; one with several sends each item to the nearest centroid (squared
    Euclidean distance, first of equals). One without a route joins the nearest of the leaves under its first-layer
    codeword that hold fewer than ``room`` items, or opens one while there are fewer than :data:`SIBLINGS` of those:
    else a large codebook would open a leaf for every few items, which merging would have to join again.

    Args:
        facet: the facet's live view.
        raws: (n,) raw indices.
        vectors: (n, d) float16 facet embeddings.
        next_leaf: first free leaf id.
        room: a leaf of this many items takes no further raw index.
    """
    at: I64 = raws.astype(np.int64)
    counts = facet.routes.lengths[at]
    leaves = np.empty(len(raws), np.int64)

    one = counts == 1
    leaves[one] = facet.routes.first(at[one])

    none = counts == 0
    new_raws, which, items = np.unique(at[none], return_inverse=True, return_counts=True)
    hosts, opened = _hosts(facet, new_raws, items, next_leaf, room)
    leaves[none] = hosts[which]

    many = np.flatnonzero(counts > 1)
    if len(many):
        candidates, per_row = facet.routes.gather(at[many])
        leaves[many] = nearest_of(
            vectors[many].astype(np.float32), facet.leaves["centroid"], candidates.astype(np.int64), per_row
        )
    return Routed(leaves, new_raws, hosts, opened)


def _hosts(facet: FacetView, raws: I64, items: I64, next_leaf: int, room: int) -> tuple[I64, int]:
    """(m,) the leaf of each new raw index, ascending ``raws`` with ``items`` each, and how many leaves are new."""
    if not len(raws):
        return np.empty(0, np.int64), 0
    sizes = facet.sizes()
    small = np.flatnonzero(facet.leaves["alive"] & (sizes < room))
    own = facet.parents(facet.raws.first(small).astype(np.int64))
    small = small[np.argsort(own, kind="stable")]
    found: I64 = kernels.hosts(
        facet.parents(raws),
        items,
        facet.reconstruct(raws),
        small,
        sizes[small],
        np.sort(own),
        facet.leaves["centroid"],
        next_leaf,
        room,
        SIBLINGS,
    )
    return found, max(0, int(found.max()) + 1 - next_leaf)


def nearest_of(
    vectors: npt.NDArray[np.float32], centroids: npt.NDArray[np.float32], candidates: I64, counts: I64
) -> I64:
    """(n,) the nearest of each row's candidates.

    Args:
        vectors: (n, d).
        centroids: (leaves, d).
        candidates: leaf ids of row 0, then of row 1, ...
        counts: (n,) how many each row has, at least one.
    """
    out = np.empty(len(vectors), np.int64)
    ends = np.cumsum(counts)
    start = 0
    while start < len(vectors):
        done = ends[start] - counts[start]
        # A raw index may lead to thousands of leaves: a whole batch of its items at once would take gigabytes.
        end = max(start + 1, int(np.searchsorted(ends, done + _PAIRS, "right")))
        out[start:end] = _nearest(vectors[start:end], centroids, candidates[done : ends[end - 1]], counts[start:end])
        start = end
    return out


def _nearest(vectors: npt.NDArray[np.float32], centroids: npt.NDArray[np.float32], candidates: I64, counts: I64) -> I64:
    row_of = np.repeat(np.arange(len(vectors)), counts)
    gap = centroids[candidates] - vectors[row_of]
    distance = np.einsum("nd,nd->n", gap, gap)
    starts = np.cumsum(counts) - counts
    best = np.flatnonzero(distance == np.repeat(np.minimum.reduceat(distance, starts), counts))
    _, first = np.unique(row_of[best], return_index=True)
    return candidates[best[first]]
