"""Many requests in one call of the compiled kernels."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.order import landmark_at
from indexer.retrieval import kernels, vote_kernels
from indexer.retrieval.request import Centroids, Limits, Served, Triggers
from schemas.config import RetrievalConfig

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

ANY_AGE = np.iinfo(np.int64).min
"""No request's ``Limits.born_after`` leaves anything out."""
_NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The leaves that Q requests read, heaviest first.

    Attributes:
        pointer: (Q+1,) where each request's begin.
        facet, leaf, weight: (n,).
        voter_pointer, voters: (n+1,) and triggers that voted for each, counted from the request's first.
    """

    pointer: I64
    facet: I64
    leaf: I64
    weight: npt.NDArray[np.float64]
    voter_pointer: I64
    voters: I64


@dataclass(frozen=True, slots=True)
class Found:
    """Results of Q requests, best first.

    Attributes:
        count, scored: (Q,) results, and members scored on the way.
        ordinal, score, slot: (Q, most) int64, float32 and int32; ``slot`` counts the request's leaves.
    """

    count: I64
    scored: I64
    ordinal: I64
    score: F32
    slot: npt.NDArray[np.int32]


def choose(triggers: Triggers, centroids: Centroids | None, config: RetrievalConfig, seeds: list[int | None]) -> Chosen:
    """Leaves of each request. ``centroids`` are needed where triggers have no leaf, or vote for neighbours."""
    total, facets = triggers.leaves.shape
    if centroids is None:
        centroids = Centroids(
            _NOTHING, np.zeros(facets + 1, np.int64), np.empty((0, 0), np.float32), np.empty(0, np.float32)
        )
        distances = np.empty((total, 0), np.float32)
    else:
        distances = centroids.distances(triggers.vectors)
    requests = len(triggers.pointer) - 1
    widest = int(np.diff(centroids.pointer).max(initial=0))
    probes = min(config.probes, widest)
    most = int(np.diff(triggers.pointer).max(initial=0)) * facets * (1 + probes)
    gumbel = np.empty((requests, 0))
    if config.selection == "multinomial":
        gumbel = np.stack([np.random.default_rng(seed).gumbel(size=most) for seed in seeds])
    votes = total * facets * (1 + probes)
    out = Chosen(
        np.zeros(requests + 1, np.int64),
        np.empty(votes, np.int64),
        np.empty(votes, np.int64),
        np.empty(votes, np.float64),
        np.zeros(votes + 1, np.int64),
        np.empty(votes, np.int64),
    )
    vote_kernels.choose(
        triggers.pointer,
        triggers.leaves,
        distances,
        centroids.leaf,
        centroids.pointer,
        gumbel,
        probes,
        config.indices,
        out.pointer,
        out.facet,
        out.leaf,
        out.weight,
        out.voter_pointer,
        out.voters,
    )
    n = int(out.pointer[-1])
    return Chosen(
        out.pointer,
        out.facet[:n],
        out.leaf[:n],
        out.weight[:n],
        out.voter_pointer[: n + 1],
        out.voters[: int(out.voter_pointer[n])],
    )


class _Scratch(threading.local):
    """Room that a thread's calls share."""

    def __init__(self) -> None:
        self.generation = 0
        self._members = self._keys = -1
        self.bloom = np.zeros(kernels.BLOOM // 64, np.uint64)

    def make_room(self, members: int, results: int, requests: int) -> None:
        if members > self._members or self.generation + 2 * requests >= 1 << 31:
            self._members = max(members, self._members, 4_096)
            self.who = np.empty(self._members, np.uint32)
            self.at = np.empty(self._members, np.int64)
            self.scores = np.empty(self._members, np.float32)
            self.table = np.zeros((1 << (2 * self._members - 1).bit_length(), 3), np.uint32)
            self.generation = 0
        if max(members, 2 * results + 64) > self._keys:
            self._keys = max(members, 2 * results + 64)
            self.keys = np.empty(self._keys, np.uint64)
            self.rest = np.empty(self._keys, np.uint64)


_SCRATCH = _Scratch()


def score(
    triggers: Triggers,
    chosen: Chosen,
    served: Served,
    limits: Limits,
    config: RetrievalConfig,
    now_ms: int,
    half_lives_s: tuple[int, ...],
) -> Found:
    """The best members of the chosen leaves."""
    requests = len(triggers.pointer) - 1
    rows = chosen.leaf * served.place.shape[1] + chosen.facet
    members = np.concatenate([[0], np.cumsum(np.minimum(served.length[rows], config.scan))])[chosen.pointer]
    most = int(np.diff(members).max(initial=0))
    k = min(config.k, max(1, most))
    scratch = _SCRATCH
    scratch.make_room(most, config.k, requests)
    window = config.decay % len(half_lives_s)
    found = Found(
        np.zeros(requests, np.int64),
        np.zeros(requests, np.int64),
        np.empty((requests, k), np.int64),
        np.empty((requests, k), np.float32),
        np.empty((requests, k), np.int32),
    )
    same = window == served.window
    landmark = served.landmark if same else landmark_at(now_ms, half_lives_s[window])
    kernels.score(
        triggers.pointer, chosen.pointer, chosen.facet, chosen.leaf, chosen.weight, chosen.voter_pointer, chosen.voters,
        triggers.vectors, triggers.skip_pointer, triggers.skip,
        limits.born_after, limits.allowed_pointer, limits.allowed,
        served.start, served.length, served.ordered, served.ordinal, served.heat, served.bits, served.place,
        served.leaf, served.created_at, served.labels, served.last_at, served.epochs, served.decayed, window,
        config.k, config.scan, config.vote_share,
        config.similarity_weight, config.engagement_weight, config.freshness_weight,
        float(now_ms), half_lives_s[window] * 1_000.0, config.freshness_half_life_s * 1_000.0, landmark,
        not same or now_ms < served.latest_engagement,
        scratch.generation, scratch.who, scratch.at, scratch.scores, scratch.table, scratch.keys, scratch.rest,
        scratch.bloom,
        found.count, found.scored, found.ordinal, found.score, found.slot,
    )  # fmt: skip
    scratch.generation += 2 * requests
    if served.names is not None:
        for request, count in enumerate(found.count.tolist()):
            found.ordinal[request, :count] = served.names[found.ordinal[request, :count]]
    return found
