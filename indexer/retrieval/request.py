"""What is asked, and what the index is asked about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from indexer.labels import EVERYTHING, Allowed, Filter
from indexer.packed import Packed
from schemas.config import RetrievalConfig

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


class Triggers(NamedTuple):
    """The triggers of Q requests, T in all, as the kernels take them.

    Attributes:
        pointer: (Q+1,) where each request's triggers begin.
        leaves: (T, F) the leaf of each, -1 where it is to be the nearest.
        vectors: (T, F, d) float32.
        skip_pointer, skip: (Q+1,) and ordinals that each request's answer may not hold: its triggers, and what it
            excludes.
    """

    pointer: I64
    leaves: I64
    vectors: F32
    skip_pointer: I64
    skip: I64


class Filters(NamedTuple):
    """What members must be like to be results of Q requests, as the kernels take it.

    Attributes:
        active: (Q,) bool, whether a request has any filter.
        born_after: (Q,) epoch milliseconds; what was created earlier is passed over.
        pointer: (Q+1,) where each request's begin in ``allowed``.
        allowed: by number of a set of labels, see :class:`indexer.labels.LabelTable`; none where all may be.
    """

    active: npt.NDArray[np.bool_]
    born_after: I64
    pointer: I64
    allowed: Allowed

    @classmethod
    def of(cls, requests: Sequence[Request], now_ms: int, decide: Callable[[Filter], Allowed]) -> Filters:
        """Those of requests asked at a time; ``decide`` tells which sets of labels pass a filter."""
        ages = [request.max_age_s for request in requests]
        unfiltered = ages.count(None) == len(ages) and not any(request.only for request in requests)
        if unfiltered and len(requests) <= len(_EVERY.active):
            return _EVERY
        allowed = [decide(request.only) if request.only else np.empty(0, np.bool_) for request in requests]
        counts = np.array([len(each) for each in allowed], np.int64)
        young = np.array([age is not None for age in ages], np.bool_)
        born_after = np.array([_ANY if age is None else now_ms - int(age * 1_000) for age in ages], np.int64)
        pointer = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(young | (counts > 0), born_after, pointer, np.concatenate(allowed))


_ANY = np.iinfo(np.int64).min
_EVERY = Filters(np.zeros(64, np.bool_), np.zeros(64, np.int64), np.zeros(65, np.int64), np.empty(0, np.bool_))
"""What most requests ask for; made once."""


class Centroids(NamedTuple):
    """Leaves of all facets, as the kernels take them.

    Attributes:
        leaf: (m,) ids, facet by facet.
        pointer: (F+1,) where each facet's begin.
        columns: (d, m) float32, the centroids; norm: (m,) float32, their squared lengths.
    """

    leaf: I64
    pointer: I64
    columns: F32
    norm: F32

    @classmethod
    def of(cls, facets: Sequence[tuple[I64, F32]]) -> Centroids:
        """From each facet's leaf ids and centroids."""
        columns = np.ascontiguousarray(np.concatenate([each.T for _, each in facets], axis=1), np.float32)
        return cls(
            np.concatenate([leaves for leaves, _ in facets]).astype(np.int64),
            np.concatenate([[0], np.cumsum([len(leaves) for leaves, _ in facets])]).astype(np.int64),
            columns,
            np.einsum("dm,dm->m", columns, columns),
        )

    @classmethod
    @cache
    def none(cls, facets: int) -> Centroids:
        """No leaves at all."""
        nothing = np.empty(0, np.int64)
        return cls(nothing, np.zeros(facets + 1, np.int64), np.empty((0, 0), np.float32), np.empty(0, np.float32))


class Pool(NamedTuple):
    """The arrays that members are read from, as the kernels take them.

    Attributes:
        start, length, ordered, ordinal, heat, bits, place: of a :class:`indexer.members.MemberPool`.
        leaf, created_at, labels, last_at, epochs, decayed: by the pool's ordinals.
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


@dataclass(frozen=True, slots=True)
class Served:
    """What members are read from.

    Attributes:
        pool: the arrays.
        learned: whether ``pool.heat`` is what members are worth by the model's own prior.
        window: else the half-life that it counts; landmark: of it; latest_engagement: none is later.
        names: ordinals of the index by those of the pool; None where they are the same.
    """

    pool: Pool
    learned: bool
    window: int
    landmark: int
    latest_engagement: int
    names: I64 | None = None


class Straight(NamedTuple):
    """What :func:`indexer.retrieval.straight_kernels.answer` reads.

    Attributes:
        packed: the fields of :class:`Pool`, the three arrays of :class:`indexer.ids.Ids`, states of items, and
            how often leaves are read.
        table: the fields of :class:`Centroids`; leaves: how many are in it.
        members: that there is room for in the pool; facets: of the index.
        learned, window, landmark, latest_engagement: as in :class:`Served`.
    """

    packed: Packed
    table: Packed
    leaves: int
    members: int
    facets: int
    learned: bool
    window: int
    landmark: int
    latest_engagement: int


class Chosen(NamedTuple):
    """The leaves that Q requests read, heaviest first.

    Attributes:
        pointer: (Q+1,) where each request's begin.
        facet, leaf, weight: (n,), and room behind.
        voter_pointer, voters: (n+1,) and triggers that voted for each, counted from the request's first; likewise.
    """

    pointer: I64
    facet: I64
    leaf: I64
    weight: npt.NDArray[np.float64]
    voter_pointer: I64
    voters: I64


class Found(NamedTuple):
    """Results of Q requests, best first.

    Attributes:
        counts: (2, Q) how many results, and how many members were scored on the way.
        score: (Q, most).
        where: (3, Q, most) ordinal, facet, leaf.
    """

    counts: I64
    score: npt.NDArray[np.float64]
    where: I64


class How(NamedTuple):
    """Sizes, weights and times of a call.

    Attributes:
        k, limit, share, per_trigger: ``k``, ``scan``, ``vote_share``, ``per_trigger`` (0: any number) of the section.
        window, landmark, half_life_ms: of the engagements that count.
        learned_weight: of the model's own prior, 0 without; with it engagement_weight and freshness_weight are 0.
        exact: see :func:`indexer.retrieval.prior_kernels.priors`.
    """

    k: int
    limit: int
    share: float
    per_trigger: int
    similarity_weight: float
    learned_weight: float
    engagement_weight: float
    freshness_weight: float
    now_ms: float
    window: int
    landmark: int
    half_life_ms: float
    freshness_half_life_ms: float
    exact: bool

    @classmethod
    def of(
        cls, config: RetrievalConfig, half_lives_s: tuple[int, ...], now_ms: int, landmark: int, *, learned: bool,
        exact: bool,
    ) -> How:  # fmt: skip
        """As configured; ``learned`` is whether there is a prior of the model's own."""
        window = config.decay % len(half_lives_s)
        configured = 0.0 if learned else 1.0
        return cls(
            config.k,
            min(config.scan, 1 << 40),  # what an int64 holds, also behind additions
            config.vote_share,
            config.per_trigger or 0,
            config.similarity_weight,
            config.prior_weight if learned else 0.0,
            configured * config.engagement_weight,
            configured * config.freshness_weight,
            float(now_ms),
            window,
            landmark,
            half_lives_s[window] * 1_000.0,
            config.freshness_half_life_s * 1_000.0,
            exact,
        )
