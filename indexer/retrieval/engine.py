"""Many requests in one call of the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from indexer.order import landmark_at
from indexer.retrieval import kernels, vote_kernels
from indexer.retrieval.request import Centroids, Chosen, Filters, Found, How, Served, Triggers
from indexer.retrieval.room import Rooms
from schemas.config import RetrievalConfig

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


_ROOMS = Rooms()


def choose(
    triggers: Triggers, centroids: Centroids | None, config: RetrievalConfig, seeds: Sequence[int | None]
) -> Chosen:
    """Leaves of each request. ``centroids`` are needed where triggers have no leaf, or vote for neighbours."""
    pointer, leaves = triggers.pointer, triggers.leaves
    facets = leaves.shape[1]
    requests = len(pointer) - 1
    table = centroids or Centroids.none(facets)
    probes = _probes(np.diff(pointer), facets, config, len(table.leaf))
    each = np.diff(pointer) * facets * (1 + probes)
    votes = int(each.sum())
    noise = np.empty((requests, 0))
    if config.selection == "multinomial":
        most = int(each.max(initial=0))
        noise = np.stack([np.random.default_rng(seed).gumbel(size=most) for seed in seeds])
    numbers = np.empty((4, votes + 1), np.int64)
    chosen = Chosen(np.empty(requests + 1, np.int64), numbers[0], numbers[1], np.empty(votes), numbers[2], numbers[3])
    vote_kernels.choose(pointer, leaves, triggers.vectors, noise, probes, config.indices, *table, *chosen)
    return chosen


def _probes(triggers: I64, facets: int, config: RetrievalConfig, leaves: int) -> I64:
    """(Q,) neighbour leaves that each trigger of a request votes for in each facet."""
    probes = np.full(len(triggers), config.probes)
    if config.adapt_probes:
        probes = np.maximum(probes, -(-config.indices // np.maximum(1, triggers * facets)) - 1)
    return np.asarray(np.minimum(probes, leaves), np.int64)


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
    how = How(
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
    k = min(config.k, len(chosen.voters) * min(config.scan, len(served.pool.ordinal)))
    found = Found(np.empty((2, requests), np.int64), np.empty((requests, k)), np.empty((3, requests, k), np.int64))
    arguments = *triggers, *chosen, *served.pool, *filters, *how, *found  # plain, as each tuple costs as well
    pieces = len(chosen.voters)
    needed = kernels.score(*_ROOMS.of(pieces), *arguments)
    if needed:
        kernels.score(*_ROOMS.of(pieces, needed), *arguments)
    if served.names is not None:
        ordinal = found.where[0]
        for request, count in enumerate(found.counts[0].tolist()):
            ordinal[request, :count] = served.names[ordinal[request, :count]]
    return found
