"""One request: triggers -> leaves -> members -> rerank within each leaf -> union."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.retrieval.readers import IndexReader, Located
from indexer.retrieval.select import Selected, Votes, select_leaves
from schemas.config import RetrievalConfig
from schemas.errors import UsageError

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Candidates:
    """n distinct items, best first.

    Attributes:
        ordinals: (n,).
        scores: (n,) float64: weighted similarity plus priors.
        facets, leaves: (n,) where each scored best.
        selected: the leaves that were read.
        scored: members scored on the way.
        missing: triggers that are not live.
        elapsed_ms: wall time.
    """

    ordinals: I64
    scores: npt.NDArray[np.float64]
    facets: I64
    leaves: I64
    selected: Selected
    scored: int
    missing: list[str]
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """n distinct items of several shards, best first.

    Attributes:
        item_ids: (n,).
        scores: (n,) float64.
        shards, facets, leaves: (n,) where each was found.
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


def retrieve(
    reader: IndexReader,
    item_ids: Sequence[str],
    config: RetrievalConfig,
    now_ms: int,
    seed: int | None = None,
) -> Candidates:
    """Candidates for one request.

    Each chosen leaf gives results in proportion to its votes, at least one, so that minor interests survive; places
    left open by small or overlapping leaves go to the best of the rest.

    Args:
        reader: the index.
        item_ids: triggers; those not live are reported in ``missing``.
        config: k, K, weights.
        now_ms: the time at which decayed counts and ages are taken, epoch milliseconds.
        seed: of multinomial selection.

    Raises:
        UsageError: if ``config.decay`` names a half-life that this index does not count.
    """
    began = time.perf_counter()
    _check_decay(reader, config)
    with reader.frozen():  # else a split in between would empty a leaf after it was chosen
        triggers = reader.locate(item_ids)
        selected, members = _choose(reader, triggers, config, seed)
    return _score(reader, triggers, selected, members, config, now_ms, began)


def fan_out(
    readers: Mapping[int, IndexReader],
    item_ids: Sequence[str],
    config: RetrievalConfig,
    now_ms: int,
    seed: int | None = None,
) -> Answer:
    """Candidates for one request from several shards, best first over all of them.

    A trigger is indexed in one shard; in the others it votes for the leaf whose centroid is nearest.

    Args:
        readers: shard number -> index; at least one.
        item_ids: triggers; those live nowhere are reported in ``missing``.
        config: k over all shards; K, weights in each.
        now_ms: as :func:`retrieve`.
        seed: as :func:`retrieve`.

    Raises:
        UsageError: as :func:`retrieve`.
    """
    began = time.perf_counter()
    at = {shard: reader.locate(item_ids) for shard, reader in readers.items()} if len(readers) > 1 else {}
    found: dict[int, Candidates] = {}
    for shard, reader in readers.items():
        _check_decay(reader, config)
        others = [each.vectors for other, each in at.items() if other != shard and len(each.vectors)]
        with reader.frozen():
            triggers = reader.locate(item_ids)
            if others:
                triggers = _join(reader, triggers, np.concatenate(others))
            selected, members = _choose(reader, triggers, config, seed)
        found[shard] = _score(reader, triggers, selected, members, config, now_ms, began)
    return _merge(readers, found, item_ids, config.k, began)


def _check_decay(reader: IndexReader, config: RetrievalConfig) -> None:
    if config.decay >= len(reader.meta.half_lives_s):
        raise UsageError(
            f"retrieval.decay is {config.decay}, but this index counts {len(reader.meta.half_lives_s)} half-lives, "
            "numbered from 0"
        )


def _join(reader: IndexReader, own: Located, vectors: F32) -> Located:
    """Triggers of this shard and, (n, F, d), of others, with the leaves where those would lie here."""
    columns = []
    for number in range(vectors.shape[1]):
        leaves, centroids = reader.centroids(number)
        if not len(leaves):
            return own  # nothing is indexed here
        columns.append(leaves[_nearest_leaves(vectors[:, number], centroids, 1)[:, 0]])
    return Located(
        np.concatenate([own.ordinals, np.full(len(vectors), -1)]),
        np.concatenate([own.leaves, np.stack(columns, 1)]),
        np.concatenate([own.vectors, vectors]),
        own.missing,
    )


def _choose(
    reader: IndexReader, triggers: Located, config: RetrievalConfig, seed: int | None
) -> tuple[Selected, list[I64]]:
    """The leaves that answer, and the members of each that are scored."""
    selected = select_leaves(_votes(reader, triggers, config.probes), config.indices, config.selection, seed)
    members = [
        reader.members(facet, leaf, config.scan)
        for facet, leaf in zip(selected.facet.tolist(), selected.leaf.tolist(), strict=True)
    ]
    return selected, members


def _merge(
    readers: Mapping[int, IndexReader], found: Mapping[int, Candidates], item_ids: Sequence[str], k: int, began: float
) -> Answer:
    shards = np.concatenate([np.full(len(each.scores), shard) for shard, each in found.items()])
    ordinals = np.concatenate([each.ordinals for each in found.values()])
    scores = np.concatenate([each.scores for each in found.values()])
    best = np.lexsort((ordinals, shards, -scores))[:k]
    ids = [name for shard, each in found.items() for name in readers[shard].item_ids(each.ordinals)]
    missing = set.intersection(*(set(each.missing) for each in found.values()))
    return Answer(
        [ids[row] for row in best.tolist()],
        scores[best],
        shards[best],
        np.concatenate([each.facets for each in found.values()])[best],
        np.concatenate([each.leaves for each in found.values()])[best],
        {shard: each.selected for shard, each in found.items()},
        sum(each.scored for each in found.values()),
        [item_id for item_id in item_ids if item_id in missing],
        (time.perf_counter() - began) * 1_000,
    )


def _score(
    reader: IndexReader,
    triggers: Located,
    selected: Selected,
    members: list[I64],
    config: RetrievalConfig,
    now_ms: int,
    began: float,
) -> Candidates:
    """The best of the members, each leaf with its share of the results."""
    parts = [_score_leaf(reader, triggers, selected, at, found, config, now_ms) for at, found in enumerate(members)]
    lengths = np.array([len(part[0]) for part in parts], np.int64)
    ordinals = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, np.int64)
    scores = np.concatenate([part[1] for part in parts]) if parts else np.empty(0)
    quota = np.maximum(1, np.rint(config.k * selected.weight / max(selected.weight.sum(), 1e-12))).astype(np.int64)
    rank = np.concatenate([np.arange(n) for n in lengths]) if parts else np.empty(0, np.int64)
    slot = np.repeat(np.arange(len(parts)), lengths)
    within_quota = rank < quota[slot] if parts else np.empty(0, np.bool_)

    # Best first among those within quota, then best first among the rest; the first appearance of an item counts.
    order = np.lexsort((ordinals, -scores, ~within_quota))
    _, first = np.unique(ordinals[order], return_index=True)
    chosen = ordinals[order[np.sort(first)][: config.k]]
    # Which leaf let an item in does not matter any more: it is shown where it scored best.
    by_item = np.lexsort((slot, -scores, ordinals))
    distinct, best = np.unique(ordinals[by_item], return_index=True)
    kept = by_item[best[np.searchsorted(distinct, chosen)]]
    kept = kept[np.lexsort((ordinals[kept], -scores[kept]))]
    return Candidates(
        ordinals[kept],
        scores[kept],
        selected.facet[slot[kept]],
        selected.leaf[slot[kept]],
        selected,
        int(lengths.sum()),
        triggers.missing,
        (time.perf_counter() - began) * 1_000,
    )


def _votes(reader: IndexReader, triggers: Located, probes: int) -> Votes:
    """One vote of each trigger for its leaf in each facet, half a vote for each of its nearest other leaves."""
    n, facets = triggers.leaves.shape
    facet = np.tile(np.arange(facets), n)
    trigger = np.repeat(np.arange(n), facets)
    parts = [(facet, triggers.leaves.ravel(), trigger, np.ones(n * facets))]
    for number in range(facets if probes and n else 0):
        leaves, centroids = reader.centroids(number)
        near = _nearest_leaves(triggers.vectors[:, number], centroids, probes + 1)
        found = leaves[near]
        rows = np.repeat(np.arange(n), near.shape[1])
        other = found.ravel() != triggers.leaves[rows, number]
        rank = np.cumsum(other.reshape(near.shape), axis=1).ravel()
        keep = other & (rank <= probes)
        parts.append((np.full(keep.sum(), number), found.ravel()[keep], rows[keep], np.full(int(keep.sum()), 0.5)))
    return Votes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _nearest_leaves(vectors: F32, centroids: F32, count: int) -> I64:
    distance = (centroids * centroids).sum(1)[None, :] - 2 * (vectors @ centroids.T)
    count = min(count, distance.shape[1])
    near = np.argpartition(distance, count - 1, axis=1)[:, :count]
    return np.take_along_axis(near, np.take_along_axis(distance, near, 1).argsort(1, kind="stable"), 1)


def _score_leaf(
    reader: IndexReader,
    triggers: Located,
    selected: Selected,
    at: int,
    members: I64,
    config: RetrievalConfig,
    now_ms: int,
) -> tuple[I64, npt.NDArray[np.float64]]:
    """A leaf's members without the triggers, best first, with their scores."""
    facet = int(selected.facet[at])
    members = members[~np.isin(members, triggers.ordinals)]
    wanted = triggers.vectors[selected.voters[at], facet]
    similarity = (reader.vectors(facet, members) @ wanted.T).max(1) if len(members) else np.empty(0)
    scores = config.similarity_weight * similarity.astype(np.float64) + prior(reader, members, config, now_ms)
    order = np.lexsort((members, -scores))
    return members[order], scores[order]


def prior(reader: IndexReader, ordinals: I64, config: RetrievalConfig, now_ms: int) -> npt.NDArray[np.float64]:
    """(n,) what an item is worth whoever asks: engagement and freshness, as configured."""
    out = np.zeros(len(ordinals))
    if config.engagement_weight and len(ordinals):
        out += config.engagement_weight * np.log1p(reader.engagement(ordinals, config.decay, now_ms))
    if config.freshness_weight and len(ordinals):
        age_s = np.maximum(0, now_ms - reader.created_at(ordinals)) / 1_000
        out += config.freshness_weight * np.exp2(-age_s / config.freshness_half_life_s)
    return out
