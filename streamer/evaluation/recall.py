"""Recall on a time split: would the items that users went on to engage with have been found?

Every engagement after the split, with an item that its user had not touched before, is one request: its
triggers are the user's latest distinct items strictly before that moment, its target is the item, its pool is
every item created before the moment that the user had not touched. Nothing at or after the moment is seen by
any system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_runtime.training.data import TrainingLog

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Ranks = npt.NDArray[np.int64]

CUTS: Final = (100, 500)
COLD_BELOW: Final = 5
MAX_TRIGGERS: Final = 5
_NOT_FOUND: Final = np.iinfo(np.int64).max  # beyond any cut, however small the pool


class Retrieve(Protocol):
    """A system under test, typically the index."""

    def __call__(self, triggers: Sequence[str], at_ms: int, k: int) -> tuple[Sequence[str], int]:
        """The best item ids for the triggers (newest first), best first, and how many items were scored.

        Ids that did not exist at ``at_ms`` or that the user had touched are skipped by the evaluation; ``k``
        leaves room for the latter.
        """
        ...


@dataclass(frozen=True, slots=True)
class Requests:
    """Q past requests, in time order.

    Attributes:
        user: (Q,) int32.
        time: (Q,) int64 epoch milliseconds.
        triggers: (Q, T) int32 item rows, newest first, -1 where there are fewer.
        target: (Q,) int32 item row.
        earlier: (Q,) int64, engagements of the target by anyone strictly before the request.
        eligible: how many requests the span held before sampling.
    """

    user: Int32Array
    time: Int64Array
    triggers: Int32Array
    target: Int32Array
    earlier: Int64Array
    eligible: int

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True, slots=True)
class SystemRecall:
    """How one system did.

    Attributes:
        recall: cut -> share of requests whose target is among the first so many.
        cold_recall: the same over requests whose target had fewer than 5 earlier engagements; NaN without
        any.
        scored_per_query: items whose score was computed, on average.
    """

    name: str
    recall: dict[int, float]
    cold_recall: dict[int, float]
    scored_per_query: float


@dataclass(frozen=True, slots=True)
class RecallReport:
    """All systems over the same requests."""

    requests: int
    cold_requests: int
    eligible: int
    pool: float
    systems: tuple[SystemRecall, ...]


class _Histories:
    """Engagements grouped by user, in time order within each."""

    def __init__(self, log: TrainingLog) -> None:
        order = np.lexsort((log.time, log.user))  # stable: equal times stay in log order
        self.item, self.time, self.user = log.item[order], log.time[order], log.user[order]
        self.first = np.searchsorted(self.user, np.arange(log.users + 1))

    def before(self, user: int, time: int) -> Int32Array:
        """Items a user engaged with strictly before a moment, oldest first, with repetitions."""
        start, stop = int(self.first[user]), int(self.first[user + 1])
        return self.item[start : start + int(np.searchsorted(self.time[start:stop], time))]


def build_requests(
    log: TrainingLog, from_ms: int, to_ms: int | None = None, max_requests: int = 2_000, seed: int = 0
) -> Requests:
    """Requests with at least one trigger in [from_ms, to_ms), a seeded sample of at most ``max_requests``."""
    histories = _Histories(log)
    stop = np.iinfo(np.int64).max if to_ms is None else to_ms
    inside = np.flatnonzero((log.time >= from_ms) & (log.time < stop))
    # The first time a user meets an item, at a moment when the user already has a history.
    pairs = log.user.astype(np.int64) * len(log.item_ids) + log.item
    _, first_meeting = np.unique(pairs, return_index=True)
    begins = np.full(log.users, np.iinfo(np.int64).max)
    np.minimum.at(begins, log.user, log.time)
    inside = inside[np.isin(inside, first_meeting)]
    inside = inside[begins[log.user[inside]] < log.time[inside]]
    eligible = len(inside)
    if eligible > max_requests:
        inside = np.sort(np.random.default_rng(seed).choice(inside, max_requests, replace=False))
    triggers = np.full((len(inside), MAX_TRIGGERS), -1, np.int32)
    for row, event in enumerate(inside.tolist()):
        history = histories.before(int(log.user[event]), int(log.time[event]))
        latest = list(dict.fromkeys(history[::-1].tolist()))[:MAX_TRIGGERS]
        triggers[row, : len(latest)] = latest
    return Requests(
        user=log.user[inside],
        time=log.time[inside],
        triggers=triggers,
        target=log.item[inside],
        earlier=_count_before(log, log.item[inside], log.time[inside]),
        eligible=eligible,
    )


def _count_before(log: TrainingLog, items: Int32Array, times: Int64Array) -> Int64Array:
    order = np.lexsort((log.time, log.item))
    item, time = log.item[order], log.time[order]
    start = np.searchsorted(item, items)
    ends = np.searchsorted(item, items, side="right")
    return np.array([np.searchsorted(time[a:b], t) for a, b, t in zip(start, ends, times, strict=True)], dtype=np.int64)


class _Leaves:
    """Items grouped by raw index."""

    def __init__(self, raw: npt.NDArray[np.uint32]) -> None:
        self._order = np.argsort(raw, kind="stable")
        self._sorted = raw[self._order]

    def members(self, raw: int) -> Int64Array:
        first, last = np.searchsorted(self._sorted, [raw, raw + 1])
        return self._order[first:last]


class RecallEvaluation:
    """The shared part of all systems: requests, pools and what each user had touched.

    Args:
        log: everything up to the end of the span, with honest contents.
        requests: from :func:`build_requests` on the same log.
    """

    def __init__(self, log: TrainingLog, requests: Requests) -> None:
        self._log = log
        self._requests = requests
        histories = _Histories(log)
        self._seen = [
            np.unique(histories.before(user, time))
            for user, time in zip(requests.user.tolist(), requests.time.tolist(), strict=True)
        ]

    def _pool(self, request: int) -> npt.NDArray[np.bool_]:
        open_: npt.NDArray[np.bool_] = self._log.created_at < self._requests.time[request]
        open_[self._seen[request]] = False
        # An engagement may carry the very time of its item's creation: the target belongs to its pool.
        open_[self._requests.target[request]] = True
        return open_

    def _rank(self, request: int, scores: npt.NDArray[np.floating], pool: npt.NDArray[np.bool_]) -> int:
        """Position of the target, 0 = best; ties go against it, so that constant scores find nothing."""
        own = scores[self._requests.target[request]]
        return int(np.count_nonzero(pool & (scores >= own))) - 1

    def popularity(self, half_life_s: float | None) -> SystemRecall:
        """Engagements before the request, with exponential decay (None: all count alike)."""
        log, requests = self._log, self._requests
        counts = np.zeros(len(log.item_ids), np.float64)
        ranks = np.empty(len(requests), np.int64)
        scored, at, now = 0, 0, int(log.time[0]) if len(log.time) else 0
        for request in range(len(requests)):
            time = int(requests.time[request])
            stop = int(np.searchsorted(log.time, time))
            ages = time - log.time[at:stop]
            if half_life_s is not None:
                counts *= 0.5 ** ((time - now) / (1000 * half_life_s))
                np.add.at(counts, log.item[at:stop], 0.5 ** (ages / (1000 * half_life_s)))
            else:
                np.add.at(counts, log.item[at:stop], 1.0)
            at, now = stop, time
            pool = self._pool(request)
            ranks[request] = self._rank(request, counts, pool)
            scored += int(np.count_nonzero(pool))
        name = "popularity" if half_life_s is None else f"popularity, half-life {half_life_s / 86_400:g} d"
        return self._result(name, ranks, scored)

    def exact(self, vectors: npt.NDArray[np.float16]) -> SystemRecall:
        """Every pool item scored by its greatest similarity to any trigger in any facet.

        Args:
            vectors: (N, F, d) facet vectors of all items.
        """
        facets = np.ascontiguousarray(vectors.transpose(1, 0, 2).astype(np.float32))
        transposed = np.ascontiguousarray(facets.transpose(0, 2, 1))
        ranks = np.empty(len(self._requests), np.int64)
        scored = 0
        for request, triggers in enumerate(self._requests.triggers):
            known = triggers[triggers >= 0]
            similarity = facets[:, known] @ transposed
            pool = self._pool(request)
            ranks[request] = self._rank(request, similarity.max(axis=(0, 1)), pool)
            scored += int(np.count_nonzero(pool))
        return self._result("exact search", ranks, scored)

    def within_leaves(self, vectors: npt.NDArray[np.float16], raw: npt.NDArray[np.uint32]) -> SystemRecall:
        """As :meth:`exact`, but an item counts in a facet only for triggers of its own raw leaf: what codes alone find.

        Args:
            vectors: (N, F, d) facet vectors of all items.
            raw: (N, F) raw indices.
        """
        ranks = np.full(len(self._requests), _NOT_FOUND, np.int64)
        leaves = [_Leaves(raw[:, facet]) for facet in range(raw.shape[1])]
        scored = 0
        for request, triggers in enumerate(self._requests.triggers):
            scores = np.full(len(vectors), -np.inf, np.float32)
            for trigger in triggers[triggers >= 0].tolist():
                for facet, leaf in enumerate(leaves):
                    members = leaf.members(int(raw[trigger, facet]))
                    similarity = vectors[members, facet].astype(np.float32) @ vectors[trigger, facet].astype(np.float32)
                    scores[members] = np.maximum(scores[members], similarity)
            reached = self._pool(request) & np.isfinite(scores)
            scored += int(np.count_nonzero(reached))
            if reached[self._requests.target[request]]:
                ranks[request] = self._rank(request, scores, reached)
        return self._result("exact search within the triggers' raw leaves", ranks, scored)

    def retrieval(self, name: str, retrieve: Retrieve) -> SystemRecall:
        """A system that answers one request at a time."""
        log, requests = self._log, self._requests
        row_of = {item_id: row for row, item_id in enumerate(log.item_ids)}
        ranks = np.full(len(requests), _NOT_FOUND, np.int64)
        scored = 0
        for request in range(len(requests)):
            triggers = [log.item_ids[row] for row in requests.triggers[request].tolist() if row >= 0]
            wanted = max(CUTS) + len(self._seen[request])
            found, count = retrieve(triggers, int(requests.time[request]), wanted)
            scored += count
            rows = np.fromiter((row_of.get(item_id, -1) for item_id in found), np.int64, len(found))
            rows = rows[rows >= 0]
            rows = rows[self._pool(request)[rows]]
            at = np.flatnonzero(rows == requests.target[request])
            if len(at):
                ranks[request] = at[0]
        return self._result(name, ranks, scored)

    def report(self, systems: Sequence[SystemRecall]) -> RecallReport:
        """The systems with what they were measured on."""
        cold = int(np.count_nonzero(self._requests.earlier < COLD_BELOW))
        pools = [np.count_nonzero(self._pool(request)) for request in range(len(self._requests))]
        return RecallReport(
            requests=len(self._requests),
            cold_requests=cold,
            eligible=self._requests.eligible,
            pool=float(np.mean(pools)) if pools else 0.0,
            systems=tuple(systems),
        )

    def _result(self, name: str, ranks: Ranks, scored: int) -> SystemRecall:
        cold = ranks[self._requests.earlier < COLD_BELOW]
        return SystemRecall(
            name=name,
            recall={cut: _share(ranks < cut) for cut in CUTS},
            cold_recall={cut: _share(cold < cut) for cut in CUTS},
            scored_per_query=scored / max(len(ranks), 1),
        )


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
