"""Many requests in one call of the compiled kernels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from indexer.order import landmark_at
from indexer.retrieval import kernels, vote_kernels
from indexer.retrieval.request import Centroids, Filters, Served, Triggers
from schemas.config import RetrievalConfig

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


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
        counts, scored: (Q,) results, and members scored on the way.
        ordinal, score, facet, leaf: (Q, most); int64, but ``score`` float64.
    """

    counts: I64
    scored: I64
    ordinal: I64
    score: npt.NDArray[np.float64]
    facet: I64
    leaf: I64


class _How(NamedTuple):
    """Sizes, weights and times of a call.

    Attributes:
        k, limit, share, per_trigger: ``k``, ``scan``, ``vote_share``, ``per_trigger`` (0: any number) of the section.
        window, landmark, half_life_ms: of the engagements that count.
        learned_weight: of the model's own prior, 0 without; then the others are 0.
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


class _Room(NamedTuple):
    """Scratch of the kernels.

    Attributes:
        at, scores: position and score of each entry; read, prior: of the members of a leaf.
        pieces: begin, end and slot of each; limits: by slot, the least key within its share.
        picked, keys, rest, who, slot: of candidates.
        table: (a power of two, over twice the candidates; 3) generation, ordinal, state; generation: (1,), the last.
        bloom: bits.
    """

    at: npt.NDArray[np.uint32]
    scores: F32
    read: npt.NDArray[np.uint32]
    prior: F32
    pieces: npt.NDArray[np.int64]
    limits: npt.NDArray[np.uint64]
    picked: npt.NDArray[np.int32]
    keys: npt.NDArray[np.uint64]
    rest: npt.NDArray[np.uint64]
    who: npt.NDArray[np.uint32]
    slot: npt.NDArray[np.int32]
    table: npt.NDArray[np.uint32]
    generation: I64
    bloom: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, entries: int, pieces: int) -> _Room:
        return cls(
            np.empty(entries, np.uint32),
            np.empty(entries, np.float32),
            np.empty(entries, np.uint32),
            np.empty(entries, np.float32),
            np.empty((pieces, 3), np.int64),
            np.empty(pieces, np.uint64),
            np.empty(entries, np.int32),
            np.empty(entries, np.uint64),
            np.empty(entries, np.uint64),
            np.empty(entries, np.uint32),
            np.empty(entries, np.int32),
            np.zeros((2 << (2 * entries).bit_length(), 3), np.uint32),
            np.zeros(1, np.int64),
            np.zeros(kernels.BLOOM // 64, np.uint64),
        )


class _Rooms(threading.local):
    """A thread's scratch, as large as its largest call wanted."""

    def __init__(self) -> None:
        self._room = _Room.of(4_096, 64)

    def of(self, entries: int, pieces: int) -> _Room:
        have = self._room
        if entries > len(have.at) or pieces > len(have.pieces):
            self._room = have = _Room.of(max(entries, len(have.at)), max(pieces, len(have.pieces)))
        return have


_ROOMS = _Rooms()


def choose(
    triggers: Triggers, centroids: Centroids | None, config: RetrievalConfig, seeds: Sequence[int | None]
) -> Chosen:
    """Leaves of each request. ``centroids`` are needed where triggers have no leaf, or vote for neighbours."""
    pointer, leaves = triggers.pointer, triggers.leaves
    total, facets = leaves.shape
    requests = len(pointer) - 1
    table = centroids or Centroids.none(facets)
    probes = min(config.probes, len(table.leaf))
    votes = total * facets * (1 + probes)
    noise = np.empty((requests, 0))
    if config.selection == "multinomial":
        most = int(np.diff(pointer).max(initial=0)) * facets * (1 + probes)
        noise = np.stack([np.random.default_rng(seed).gumbel(size=most) for seed in seeds])
    numbers = np.empty((4, votes + 1), np.int64)
    chosen = Chosen(np.empty(requests + 1, np.int64), numbers[0], numbers[1], np.empty(votes), numbers[2], numbers[3])
    vote_kernels.choose(pointer, leaves, triggers.vectors, table, noise, probes, config.indices, chosen)
    return chosen


def read_by(chosen: Chosen) -> tuple[I64, I64]:
    """(n,) facets and (n,) ids of the leaves that any of the requests reads."""
    n = int(chosen.pointer[-1])
    return chosen.facet[:n], chosen.leaf[:n]


def score(
    triggers: Triggers,
    chosen: Chosen,
    served: Served,
    filters: Filters,
    config: RetrievalConfig,
    now_ms: int,
    half_lives_s: tuple[int, ...],
) -> Found:
    """The best members of the chosen leaves."""
    window = config.decay % len(half_lives_s)
    same = window == served.window
    configured = 0.0 if served.learned else 1.0
    how = _How(
        config.k,
        config.scan,
        config.vote_share,
        config.per_trigger or 0,
        config.similarity_weight,
        config.prior_weight if served.learned else 0.0,
        configured * config.engagement_weight,
        configured * config.freshness_weight,
        float(now_ms),
        window,
        served.landmark if same else landmark_at(now_ms, half_lives_s[window]),
        half_lives_s[window] * 1_000.0,
        config.freshness_half_life_s * 1_000.0,
        not same or now_ms < served.latest_engagement,
    )
    requests = len(triggers.pointer) - 1
    room = _ROOMS.of(0, len(chosen.voters))
    k = min(config.k, len(chosen.voters) * min(config.scan, len(served.pool.ordinal)))
    numbers = np.empty((3, requests, k), np.int64)
    counts = np.empty((2, requests), np.int64)
    found = Found(counts[0], counts[1], numbers[0], np.empty((requests, k)), numbers[1], numbers[2])
    needed = kernels.score(triggers, chosen, served.pool, filters, how, room, found)
    if needed:
        room = _ROOMS.of(needed, len(chosen.voters))
        kernels.score(triggers, chosen, served.pool, filters, how, room, found)
    if served.names is not None:
        for request, count in enumerate(found.counts.tolist()):
            found.ordinal[request, :count] = served.names[found.ordinal[request, :count]]
    return found
