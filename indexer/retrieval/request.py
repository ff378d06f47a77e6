"""What is asked, and what the index is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.labels import EVERYTHING, Allowed, Filter

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        item_ids: triggers that may be indexed.
        vectors: (c, F, d) embeddings of triggers that are not, float16 or float32.
        raws: (c, F) their raw indices, where known: they vote for the leaf that a new item like them would enter; else
            for the leaf whose centroid is nearest.
        exclude: items that the answer may not hold, such as those seen.
        max_age_s: items created earlier than this before now are left out; None takes all.
        only: the labels of items that the answer may hold.
        seed: of multinomial selection; None draws anew each time.
    """

    item_ids: Sequence[str]
    vectors: npt.NDArray[np.floating] | None = None
    raws: npt.NDArray[np.uint32] | None = None
    exclude: Sequence[str] = ()
    max_age_s: float | None = None
    only: Filter = EVERYTHING
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Triggers:
    """The triggers of Q requests, T in all.

    Attributes:
        pointer: (Q+1,) where each request's triggers begin.
        leaves: (T, F) the leaf of each, -1 where it is to be the nearest.
        vectors: (T, F, d) float32.
        skip_pointer, skip: (Q+1,) and ordinals that each request's answer may not hold: its triggers, and what it
            excludes.
        missing: ids of each request that are not live.
    """

    pointer: I64
    leaves: I64
    vectors: F32
    skip_pointer: I64
    skip: I64
    missing: list[list[str]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the answers of Q requests may hold.

    Attributes:
        born_after: (Q,) epoch milliseconds; what was created earlier is passed over.
        allowed_pointer: (Q+1,) where each request's begin in ``allowed``.
        allowed: by number of a set of labels, see :class:`indexer.labels.LabelTable`; none where all may be.
    """

    born_after: I64
    allowed_pointer: I64
    allowed: Allowed


@dataclass(frozen=True, slots=True)
class Centroids:
    """Leaves of all facets.

    Attributes:
        leaf: (m,) ids, facet by facet.
        pointer: (F+1,) where each facet's begin.
        centroid: (m, d) float32; norm: (m,) float32, their squared lengths.
    """

    leaf: I64
    pointer: I64
    centroid: F32
    norm: F32

    @classmethod
    def of(cls, facets: Sequence[tuple[I64, F32]]) -> Centroids:
        """From each facet's leaf ids and centroids."""
        centroid = np.ascontiguousarray(np.concatenate([each for _, each in facets]), np.float32)
        return cls(
            np.concatenate([leaves for leaves, _ in facets]).astype(np.int64),
            np.concatenate([[0], np.cumsum([len(leaves) for leaves, _ in facets])]).astype(np.int64),
            centroid,
            np.einsum("md,md->m", centroid, centroid),
        )

    def distances(self, vectors: F32) -> F32:
        """(T, m) squared distances of (T, F, d) embeddings to the centroids of their facets, up to a constant each."""
        out = np.empty((len(vectors), len(self.leaf)), np.float32)
        for facet in range(len(self.pointer) - 1):
            at = slice(self.pointer[facet], self.pointer[facet + 1])
            np.matmul(vectors[:, facet], self.centroid[at].T, out=out[:, at])
        out *= -2
        out += self.norm
        return out


@dataclass(frozen=True, slots=True)
class Served:
    """The arrays that members are read from, as :func:`indexer.retrieval.kernels.score` takes them.

    Attributes:
        start, length, ordered, ordinal, heat, bits, place: of a pool.
        leaf, created_at, labels, last_at, epochs, decayed: by the pool's ordinals.
        landmark: of ``heat``; window: the half-life it counts; latest_engagement: none is later.
        names: ordinals of the index by those of the pool; None where they are the same.
    """

    start: I64
    length: I64
    ordered: I64
    ordinal: npt.NDArray[np.uint32]
    heat: F32
    bits: npt.NDArray[np.uint16]
    place: npt.NDArray[np.uint32]
    leaf: npt.NDArray[np.uint32]
    created_at: I64
    labels: npt.NDArray[np.uint32]
    last_at: I64
    epochs: npt.NDArray[np.int32]
    decayed: npt.NDArray[np.float64]
    window: int
    landmark: int
    latest_engagement: int
    names: I64 | None = None
