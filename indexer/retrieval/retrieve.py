"""From triggers to candidates: their leaves -> members -> the best of each leaf -> union."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import numpy.typing as npt

from indexer.retrieval import engine, hot
from indexer.retrieval.readers import IndexReader
from indexer.retrieval.request import Filters, Request
from indexer.retrieval.select import Selected
from indexer.retrieval.trace import trace
from schemas.config import RetrievalConfig
from schemas.errors import UsageError

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class Candidates:
    """n distinct items, best first; cut out of the array that they were computed in when asked for.

    Attributes:
        missing: triggers that are not live.
        elapsed_ms: wall time.
    """

    __slots__ = ("_answered", "_at", "elapsed_ms", "missing")

    def __init__(self, answered: engine.Answered, at: int, missing: list[str], elapsed_ms: float) -> None:
        self._answered, self._at, self.missing, self.elapsed_ms = answered, at, missing, elapsed_ms

    @property
    def ordinals(self) -> I64:
        """(n,)."""
        return self._answered.part(1, self._at)

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """(n,) weighted similarity plus priors; of the hot list, what an item is worth."""
        return self._answered.part(0, self._at).view(np.float64)

    @property
    def facets(self) -> I64:
        """(n,) where each scored best; -1: on the hot list."""
        return self._answered.part(2, self._at)

    @property
    def leaves(self) -> I64:
        """(n,) where each scored best; -1: on the hot list."""
        return self._answered.part(3, self._at)

    @property
    def scored(self) -> int:
        """Members scored on the way."""
        return self._answered.scored(self._at)

    @property
    def selected(self) -> Selected:
        """The leaves that were read."""
        chosen = self._answered.chosen
        begin, end = chosen.pointer[self._at : self._at + 2].tolist()
        return Selected(
            chosen.facet[begin:end],
            chosen.leaf[begin:end],
            chosen.weight[begin:end],
            chosen.voter_pointer[begin : end + 1],
            chosen.voters,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """n distinct items of several shards, best first.

    Attributes:
        item_ids: (n,).
        scores: (n,) float64.
        shards, facets, leaves: (n,) where each was found; facet and leaf -1: on the hot list.
        selected: shard -> the leaves that were read there.
        scored: members scored on the way.
        missing: triggers that are live in none of the shards.
        elapsed_ms: wall time.
    """

    item_ids: list[str]
    scores: npt.NDArray[np.float64]
    shards: I64
    facets: I64
    leaves: I64
    selected: dict[int, Selected]
    scored: int
    missing: list[str]
    elapsed_ms: float


_AT_ONCE = 64
"""Requests answered in one hold of the lock, at most: the writer waits meanwhile."""


def retrieve(
    reader: IndexReader,
    item_ids: Sequence[str],
    config: RetrievalConfig,
    now_ms: int,
    seed: int | None = None,
) -> Candidates:
    """Candidates for one request of indexed triggers; see :func:`retrieve_many`."""
    return retrieve_many(reader, [Request(item_ids, seed=seed)], config, now_ms)[0]


def retrieve_many(reader: IndexReader, requests: Sequence[Request], config: RetrievalConfig, now_ms: int) -> Answers:
    """Candidates for many requests.

    With ``config.hot_share`` that share of the places goes to the first of the hot list (:mod:`indexer.hot`), whatever
    is asked; they come first, of facet and leaf -1, and what either side lacks the other fills.

    Each chosen leaf gives results in proportion to its votes, at least one, so that minor interests survive; places
    left open by small or overlapping leaves go to the best of the rest. What a request leaves out takes no place among
    the members that are scored: the next ones in the leaf are.

    Args:
        reader: the index.
        requests: triggers that are not live are reported in ``missing``.
        config: k, K, weights.
        now_ms: the time at which decayed counts and ages are taken, epoch milliseconds.

    Raises:
        UsageError: if ``config.decay`` names a half-life that this index does not count.
    """
    if config.decay >= len(reader.meta.half_lives_s):
        raise UsageError(
            f"retrieval.decay is {config.decay}, but this index counts {len(reader.meta.half_lives_s)} half-lives, "
            "numbered from 0"
        )
    starts = range(0, len(requests), _AT_ONCE)
    parts = [_answer(reader, requests[start : start + _AT_ONCE], config, now_ms) for start in starts]
    return Answers(parts, len(requests))


def fan_out(
    readers: Mapping[int, IndexReader],
    item_ids: Sequence[str],
    config: RetrievalConfig,
    now_ms: int,
    seed: int | None = None,
) -> Answer:
    """Candidates for one request from several shards, see :func:`fan_out_request`."""
    return fan_out_request(readers, Request(item_ids, seed=seed), config, now_ms)


def fan_out_request(
    readers: Mapping[int, IndexReader], request: Request, config: RetrievalConfig, now_ms: int
) -> Answer:
    """Candidates for one request from several shards, best first over all of them.

    A trigger is indexed in one shard; in the others it is one that is not indexed.

    Args:
        readers: shard number -> index; at least one.
        request: triggers that are live nowhere are reported in ``missing``.
        config: k over all shards; K, weights in each.
        now_ms: as :func:`retrieve_many`.

    Raises:
        UsageError: as :func:`retrieve_many`.
    """
    began = time.perf_counter()
    retrieval = config.model_copy(update={"hot_share": 0.0})
    vectors: dict[int, F32] = {}
    for shard, reader in readers.items() if len(readers) > 1 else ():
        with reader.frozen():
            vectors[shard] = reader.locate(request.item_ids).vectors
    found: dict[int, Candidates] = {}
    for shard, reader in readers.items():
        others = [each for other, each in vectors.items() if other != shard and len(each)]
        mine = request
        if others:
            given = [] if request.vectors is None else [request.vectors]
            raws = request.raws
            mine = replace(request, vectors=np.concatenate([*given, *others]), raws=raws)
        found[shard] = retrieve_many(reader, [mine], retrieval, now_ms)[0]
    lists = [hot.passing(reader, request, now_ms) for reader in readers.values()] if config.hot_share else []
    return _merge(readers, found, lists, request.item_ids, config, began)


def _answer(reader: IndexReader, requests: Sequence[Request], config: RetrievalConfig, now_ms: int) -> _Part:
    began = time.perf_counter()
    missing: list[list[str]] | None = None
    with reader.frozen():  # else a split in between would empty a leaf after it was chosen
        straight = reader.straight(neighbours=config.probes > 0) if engine.plain(requests, config) else None
        answered = None
        if straight is not None:
            answered = engine.answer(straight, requests, config, now_ms, reader.meta.half_lives_s)
        if answered is None:
            answered, missing = _in_steps(reader, requests, config, now_ms)
    return answered, missing, (time.perf_counter() - began) * 1_000 / len(requests)


def _in_steps(
    reader: IndexReader, requests: Sequence[Request], config: RetrievalConfig, now_ms: int
) -> tuple[engine.Answered, list[list[str]]]:
    """For whatever is asked, and whatever is read."""
    triggers, missing = trace(reader, requests)
    given = any(request.vectors is not None for request in requests)  # these may have no leaf
    centroids = reader.centroids() if config.probes or config.adapt_probes or given else None
    chosen = engine.choose(triggers, centroids, config, [request.seed for request in requests])
    served, skip = reader.serve(*engine.read_by(chosen), triggers.skip)
    filters = Filters.of(requests, now_ms, reader.allowed)
    placed = triggers._replace(skip=skip)
    answered = engine.score(placed, chosen, served, filters, config, now_ms, reader.meta.half_lives_s)
    if config.hot_share:
        skips = triggers.skip_pointer, triggers.skip
        answered = hot.shared(answered, reader.hot(), skips, filters, config, now_ms)
    return answered, missing


_Part = tuple[engine.Answered, list[list[str]] | None, float]
"""Answers to some requests, the missing triggers of each, and milliseconds that one took."""


class Answers(Sequence[Candidates]):
    """Candidates of many requests."""

    def __init__(self, parts: Sequence[_Part], count: int) -> None:
        self._parts = parts
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Candidates: ...
    @overload
    def __getitem__(self, at: slice) -> list[Candidates]: ...
    def __getitem__(self, at: int | slice) -> Candidates | list[Candidates]:
        if isinstance(at, slice):
            return [self[each] for each in range(self._count)[at]]
        number = range(self._count)[at]
        answered, missing, elapsed_ms = self._parts[number // _AT_ONCE]
        within = number % _AT_ONCE
        return Candidates(answered, within, missing[within] if missing else [], elapsed_ms)


def _merge(
    readers: Mapping[int, IndexReader],
    found: Mapping[int, Candidates],
    lists: Sequence[hot.Passing],
    item_ids: Sequence[str],
    config: RetrievalConfig,
    began: float,
) -> Answer:
    """One answer of what each shard found and, where they share the places, of each shard's hot list."""
    shards = _numbered(readers, [each.ordinals for each in found.values()])
    ordinals = np.concatenate([each.ordinals for each in found.values()])
    scores = np.concatenate([each.scores for each in found.values()])
    facets = np.concatenate([each.facets for each in found.values()])
    leaves = np.concatenate([each.leaves for each in found.values()])
    best = np.lexsort((ordinals, shards, -scores))[: config.k]
    if lists:
        hot_shards = _numbered(readers, [each.ordinals for each in lists])
        hot_scores = np.concatenate([each.scores for each in lists])
        hottest = np.lexsort((hot_shards, -hot_scores))  # of one shard in the order of its list
        hot_ordinals = np.concatenate([each.ordinals for each in lists])
        head, rest, fill = hot.arranged(
            (hot_shards << _SHARD | hot_ordinals)[hottest], (shards << _SHARD | ordinals)[best], config
        )
        best = np.concatenate([hottest[head] + len(scores), best[rest], hottest[fill] + len(scores)])
        of_the_list = np.full(len(hot_scores), hot.OF_THE_LIST)
        shards, ordinals = np.concatenate([shards, hot_shards]), np.concatenate([ordinals, hot_ordinals])
        scores = np.concatenate([scores, hot_scores])
        facets, leaves = np.concatenate([facets, of_the_list]), np.concatenate([leaves, of_the_list])
    ids = np.empty(len(best), object)
    for shard, reader in readers.items():
        mine = np.flatnonzero(shards[best] == shard)
        ids[mine] = reader.item_ids(ordinals[best[mine]])
    missing = set.intersection(*(set(each.missing) for each in found.values()))
    return Answer(
        ids.tolist(),
        scores[best],
        shards[best],
        facets[best],
        leaves[best],
        {shard: each.selected for shard, each in found.items()},
        sum(each.scored for each in found.values()),
        [item_id for item_id in item_ids if item_id in missing],
        (time.perf_counter() - began) * 1_000,
    )


_SHARD = 40
"""Bits of an ordinal, where it is made one number with its shard's."""


def _numbered(readers: Mapping[int, IndexReader], each: Sequence[I64]) -> I64:
    """(n,) the shard of each ordinal of some of every reader."""
    return np.repeat(np.array(list(readers), np.int64), [len(some) for some in each])


def prior(reader: IndexReader, ordinals: I64, config: RetrievalConfig, now_ms: int) -> npt.NDArray[np.float64]:
    """(n,) what an item is worth whoever asks: by the model's own prior, or engagement and freshness, as configured."""
    learned = reader.worth(ordinals)
    if learned is not None:
        return config.prior_weight * learned.astype(np.float64)
    out = np.zeros(len(ordinals))
    if config.engagement_weight and len(ordinals):
        out += config.engagement_weight * np.log1p(reader.engagement(ordinals, config.decay, now_ms))
    if config.freshness_weight and len(ordinals):
        age_s = np.maximum(0, now_ms - reader.created_at(ordinals)) / 1_000
        out += config.freshness_weight * np.exp2(-age_s / config.freshness_half_life_s)
    return out
