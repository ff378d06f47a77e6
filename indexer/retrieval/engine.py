"""Many requests in one call of the compiled kernels."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from indexer.ids import encode
from indexer.order import landmark_at
from indexer.retrieval import kernels, layout, straight_kernels, vote_kernels
from indexer.retrieval.request import Centroids, Chosen, Filters, Found, How, Request, Served, Straight, Triggers
from indexer.retrieval.room import Rooms
from schemas.config import RetrievalConfig

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


_ROOMS = Rooms()
_found_size, _chosen_size = layout.found_size.py_func, layout.chosen_size.py_func
_found_in, _chosen_in = layout.found_in.py_func, layout.chosen_in.py_func


class Answered:
    """Answers to Q requests, in the array they were computed in.

    Attributes:
        numbers: int64, a :class:`Found` and perhaps a :class:`Chosen`, see :mod:`indexer.retrieval.layout`.
        requests, k: how many, and room for results of each.
    """

    __slots__ = ("_chosen", "_votes", "k", "numbers", "requests")

    def __init__(self, numbers: I64, requests: int, k: int, chosen: Chosen | None, votes: int) -> None:
        self.numbers, self.requests, self.k, self._chosen, self._votes = numbers, requests, k, chosen, votes

    @property
    def found(self) -> Found:
        """The results."""
        return Found(*_found_in(self.numbers, self.requests, self.k))

    @property
    def chosen(self) -> Chosen:
        """The leaves that were read."""
        if self._chosen is None:
            behind = self.numbers[_found_size(self.requests, self.k) :]
            self._chosen = Chosen(*_chosen_in(behind, self.requests, self._votes))
        return self._chosen

    def scored(self, at: int) -> int:
        """Members that were scored for request ``at``."""
        return int(self.numbers[self.requests + at])

    def part(self, which: int, at: int) -> I64:
        """Of the results of request ``at``: 0 scores, as bits of float64, 1 ordinals, 2 facets, 3 leaves."""
        begin = 2 * self.requests + (which * self.requests + at) * self.k
        return self.numbers[begin : begin + int(self.numbers[at])]


class _Fixed(threading.local):
    """What a thread was last told about a configuration, see :func:`indexer.retrieval.straight_kernels.fixed_of`."""

    def __init__(self) -> None:
        self._known: tuple[RetrievalConfig | None, tuple[int, ...], bool] = None, (), False
        self._fixed = np.empty(0)

    def of(self, config: RetrievalConfig, half_lives_s: tuple[int, ...], *, learned: bool) -> npt.NDArray[np.float64]:
        """Of this one, which never changes."""
        mine, theirs, was = self._known
        if mine is not config or theirs is not half_lives_s or was != learned:
            self._known = config, half_lives_s, learned
            self._fixed = straight_kernels.fixed_of(config, half_lives_s, learned=learned)
        return self._fixed


_FIXED = _Fixed()


def plain(requests: Sequence[Request], config: RetrievalConfig) -> bool:
    """Whether :func:`answer` may answer these."""
    if config.selection != "top" or config.adapt_probes or config.hot_share:
        return False
    for request in requests:
        if request.vectors is not None or request.exclude or request.max_age_s is not None or request.only:
            return False
    return True


def blank(requests: int, k: int, chosen: Chosen) -> Answered:
    """Room for k results of each request, all zero."""
    return Answered(np.zeros(_found_size(requests, k), np.int64), requests, k, chosen, 0)


def answer(
    straight: Straight, requests: Sequence[Request], config: RetrievalConfig, now_ms: int, half_lives_s: tuple[int, ...]
) -> Answered | None:
    """Leaves and results of :func:`plain` requests; None if a trigger is not live."""
    count = len(requests)
    ids = encode([item_id for request in requests for item_id in request.item_ids])
    lengths = np.array([*(len(request.item_ids) for request in requests), *map(len, ids)], np.int64)
    probes = min(config.probes, straight.leaves)
    votes = len(ids) * straight.facets * (1 + probes)
    k = min(config.k, votes * min(config.scan, straight.members))
    landmark, exact = since(straight, config, now_ms, half_lives_s)
    out = np.empty(_found_size(count, k) + _chosen_size(count, votes), np.int64)
    fixed = _FIXED.of(config, half_lives_s, learned=straight.learned)
    text = np.frombuffer(b"".join(ids), np.uint8)
    index, table = straight.packed.words, straight.table.words
    rest = count, lengths, text, k, fixed, float(now_ms), landmark, exact, out
    status = straight_kernels.answer(index, table, probes, *_ROOMS.packed(votes), *rest)
    if status > 0:
        status = straight_kernels.answer(index, table, probes, *_ROOMS.packed(votes, status), *rest)
    return None if status else Answered(out, count, k, None, votes)


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
) -> Answered:
    """The best members of the chosen leaves."""
    landmark, exact = since(served, config, now_ms, half_lives_s)
    how = How.of(config, half_lives_s, now_ms, landmark, learned=served.learned, exact=exact)
    requests = len(triggers.pointer) - 1
    k = min(config.k, len(chosen.voters) * min(config.scan, len(served.pool.ordinal)))
    out = np.empty(_found_size(requests, k), np.int64)
    found = _found_in(out, requests, k)
    arguments = *triggers, *chosen, *served.pool, *filters, *how, *found  # plain, as each tuple costs as well
    pieces = len(chosen.voters)
    needed = kernels.score(*_ROOMS.of(pieces), *arguments)
    if needed:
        kernels.score(*_ROOMS.of(pieces, needed), *arguments)
    if served.names is not None:
        ordinal = found.where[0]
        for request, count in enumerate(found.counts[0].tolist()):
            ordinal[request, :count] = served.names[ordinal[request, :count]]
    return Answered(out, requests, k, chosen, 0)


def since(
    served: Served | Straight, config: RetrievalConfig, now_ms: int, half_lives_s: tuple[int, ...]
) -> tuple[int, bool]:
    """The landmark of the window that counts, and whether heats do not do, see :class:`How`."""
    window = config.decay % len(half_lives_s)
    if window == served.window:
        return served.landmark, now_ms < served.latest_engagement
    return landmark_at(now_ms, half_lives_s[window]), True
