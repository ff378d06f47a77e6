"""What an on-call engineer asks of a store: counts and health, where an item is, what a leaf holds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import orjson

from indexer import keys
from indexer.counters import decayed_counts
from indexer.ids import encode
from indexer.keys import ItemState, LeafState
from indexer.retrieval.retrieve import Answer
from indexer.retrieval.store_reader import StoreReader
from indexer.store import Store, now_ms
from schemas.errors import NotFoundError
from schemas.replies import (
    EngagementCounts,
    FacetStats,
    ItemCounts,
    ItemFacet,
    ItemReply,
    LeafMember,
    LeafReply,
    LeafRow,
    QueryReply,
    QueryResult,
    SelectedLeaf,
    SizeQuantiles,
    SourceRef,
    StatsReply,
)
from schemas.store import StoreMeta, Totals

I64 = npt.NDArray[np.int64]


def stats(stores: Mapping[int, Store]) -> StatsReply:
    """Counts and health of an index: shard number -> store, at least one."""
    metas = [store.meta() for store in stores.values()]
    totals = [store.totals() for store in stores.values()]
    meta = metas[0]
    entries = [orjson.loads(newest[1]) for store in stores.values() if (newest := store.newest("journal"))]
    offsets: dict[str, int] = {}
    for store in stores.values():
        offsets |= store.offsets()
    return StatsReply(
        generation=meta.generation,
        model_hash=meta.model_hash,
        codebook_hash=meta.codebook_hash,
        items=ItemCounts(
            live=sum(each.items_live for each in totals),
            deleted=sum(each.items_deleted for each in totals),
            stale=sum(each.items_stale for each in totals),
        ),
        engagements=EngagementCounts(
            applied=sum(each.engagements_applied for each in totals),
            pending=sum(1 for store in stores.values() for _ in store.scan_keys("pending")),
            stale=sum(each.engagements_stale for each in totals),
            duplicate=sum(each.engagements_duplicate for each in totals),
        ),
        dead_letters=sum(each.dead_letters for each in totals),
        offsets=offsets,
        splits=sum(each.splits for each in totals),
        merges=sum(each.merges for each in totals),
        journal_last=max(entries, key=lambda entry: int(entry.get("at_ms", 0)), default=None),
        facets=[_facet_stats(facet, list(stores.values()), totals, meta) for facet in range(meta.facets)],
        disk_bytes=sum(store.size_on_disk() for store in stores.values()),
        shards=sorted(stores),
        records_lost=sum(each.records_lost for each in totals),
    )


def _facet_stats(facet: int, stores: list[Store], totals: list[Totals], meta: StoreMeta) -> FacetStats:
    """One facet over all shards; each shard has bounds of its own, the widest are shown."""
    sizes: list[I64] = []
    inside = marked = 0
    raws: set[bytes] = set()
    for store, total in zip(stores, totals, strict=True):
        leaf_ids, states = _leaves(store, facet)
        found = _sizes(store, facet, leaf_ids)
        sizes.append(found)
        inside += int(np.count_nonzero((found >= total.bounds[0]) & (found <= total.bounds[1])))
        marked += int(np.count_nonzero(states != LeafState.NORMAL))
        raws.update(store.scan_keys("routes", bytes([facet])))
    every = np.concatenate(sizes)
    return FacetStats(
        facet=facet,
        leaves=len(every),
        items=int(every.sum()),
        bounds=(min(total.bounds[0] for total in totals), max(total.bounds[1] for total in totals)),
        size=_quantiles(every),
        within_bounds_share=round(inside / len(every), 6) if len(every) else 1.0,
        marked=marked,
        raw_active_share=round(len(raws) / meta.codewords**meta.layers, 6),
    )


def item(stores: Mapping[int, Store], item_id: str) -> ItemReply:
    """Where an item is.

    Raises:
        NotFoundError: if it was never seen in any of the shards.
    """
    for shard, store in stores.items():
        reply = _item(store, item_id, shard)
        if reply is not None:
            return reply
    raise NotFoundError(
        f"item {item_id!r} is not in the index; is its item.created applied (`facetstream lag`), and is its shard one "
        f"of those here ({', '.join(map(str, sorted(stores)))})?"
    )


def _item(store: Store, item_id: str, shard: int) -> ItemReply | None:
    key = store.get("ids", *encode([item_id]))
    value = None if key is None else store.get("items", key)
    if key is None or value is None:
        return None
    meta, totals = store.meta(), store.totals()
    record = keys.item_record(value, meta.facets)
    ordinal = keys.u64(key, "ids")
    live = record.state == ItemState.LIVE
    labels = store.label(record.labels)
    counters = StoreReader(store).counters(np.array([ordinal]))
    decayed = decayed_counts(counters, now_ms(), meta.half_lives_s)[0]
    topic, _, partition = totals.sources[record.source].rpartition("-")
    return ItemReply(
        item_id=item_id,
        ordinal=ordinal,
        state="live" if live else "deleted",
        created_at=record.created_at,
        occurred_at=record.occurred_at,
        language=labels.language,
        categories=list(labels.categories),
        facets=[
            ItemFacet(
                facet=facet,
                code=_code(int(record.raw[facet]), meta.layers, meta.codewords),
                raw=int(record.raw[facet]),
                leaf=int(record.leaf[facet]),
            )
            for facet in range(meta.facets if live else 0)
        ],
        counters={
            kind: int(count) for kind, count in zip(totals.kinds, counters.counts[0].tolist(), strict=False) if count
        },
        decayed={
            str(half_life): round(float(value), 6) for half_life, value in zip(meta.half_lives_s, decayed, strict=True)
        },
        last_engaged_at=int(counters.last_at[0]) or None,
        source=SourceRef(topic=topic, partition=int(partition), offset=record.offset),
        shard=shard,
    )


def leaf(store: Store, facet: int, leaf_id: int, shard: int = 0) -> LeafReply:
    """What a posting list holds; leaf ids are a shard's own.

    Raises:
        NotFoundError: if there is no such leaf.
    """
    meta = store.meta()
    possible = 0 <= facet < meta.facets and 0 <= leaf_id < 1 << 32
    value = store.get("leaves", keys.FACET_U32.pack(facet, leaf_id)) if possible else None
    if value is None:
        raise NotFoundError(
            f"facet {facet} has no leaf {leaf_id}; it may have been split or merged: see `facetstream leaves`"
        )
    reader = StoreReader(store)
    ordinals = reader.posting(facet, leaf_id)
    packed = np.array([leaf_id], "<u4").tobytes()
    raws = sum(packed in _words(route) for _, route in store.scan("routes", bytes([facet])))
    members = [
        LeafMember(item_id=item_id, ordinal=ordinal)
        for item_id, ordinal in zip(reader.item_ids(ordinals), ordinals.tolist(), strict=True)
    ]
    return LeafReply(
        facet=facet,
        leaf=leaf_id,
        size=len(members),
        state=LeafState(keys.leaf_record(value).state).name.lower(),
        raw_indices=raws,
        items=members,
        shard=shard,
    )


def leaves(stores: Mapping[int, Store], facet: int | None, top: int) -> list[LeafRow]:
    """The largest leaves of all shards, of one facet or of all.

    Raises:
        NotFoundError: if there is no such facet.
    """
    rows = [row for shard, store in stores.items() for row in _largest(store, facet, top, shard)]
    return sorted(rows, key=lambda row: (-row.size, row.shard, row.facet, row.leaf))[:top]


def _largest(store: Store, facet: int | None, top: int, shard: int) -> list[LeafRow]:
    meta = store.meta()
    if facet is not None and not 0 <= facet < meta.facets:
        raise NotFoundError(f"there is no facet {facet}; this index has facets 0 to {meta.facets - 1}")
    rows: list[LeafRow] = []
    for number in range(meta.facets) if facet is None else [facet]:
        leaf_ids, states = _leaves(store, number)
        sizes = _sizes(store, number, leaf_ids)
        rows += [
            LeafRow(
                facet=number,
                leaf=int(leaf_ids[at]),
                size=int(sizes[at]),
                state=LeafState(int(states[at])).name.lower(),
                shard=shard,
            )
            for at in np.argsort(-sizes, kind="stable")[:top]
        ]
    return rows


def query_reply(triggers: list[str], found: Answer) -> QueryReply:
    """One request's answer as others parse it."""
    return QueryReply(
        triggers=triggers,
        missing=found.missing,
        indices=[
            SelectedLeaf(facet=facet, leaf=leaf_id, weight=round(weight, 6), shard=shard)
            for shard, selected in found.selected.items()
            for facet, leaf_id, weight in zip(
                selected.facet.tolist(), selected.leaf.tolist(), selected.weight.tolist(), strict=True
            )
        ],
        results=[
            QueryResult(item_id=item_id, score=round(score, 6), facet=facet, leaf=leaf_id, shard=shard)
            for item_id, score, facet, leaf_id, shard in zip(
                found.item_ids,
                found.scores.tolist(),
                found.facets.tolist(),
                found.leaves.tolist(),
                found.shards.tolist(),
                strict=True,
            )
        ],
        scored=found.scored,
        elapsed_ms=round(found.elapsed_ms, 3),
    )


def _leaves(store: Store, facet: int) -> tuple[I64, npt.NDArray[np.uint8]]:
    ids: list[int] = []
    states: list[int] = []
    for key, value in store.scan("leaves", bytes([facet])):
        ids.append(keys.numbered(key, "leaves"))
        states.append(keys.leaf_record(value).state)
    return np.array(ids, np.int64), np.array(states, np.uint8)


def _sizes(store: Store, facet: int, leaf_ids: I64) -> I64:
    sizes = np.zeros((int(leaf_ids.max(initial=-1)) // keys.PAGE + 1) * keys.PAGE, np.int64)
    for key, value in store.scan("sizes", bytes([facet])):
        at = keys.numbered(key, "sizes") * keys.PAGE
        if at < len(sizes):
            sizes[at : at + keys.PAGE] = keys.u32_values(value, "sizes")
    return np.asarray(sizes[leaf_ids])


def _quantiles(sizes: I64) -> SizeQuantiles:
    if not len(sizes):
        return SizeQuantiles(min=0, p50=0, p90=0, p99=0, max=0)
    p50, p90, p99 = np.percentile(sizes, [50, 90, 99], method="nearest").astype(int).tolist()
    return SizeQuantiles(min=int(sizes.min()), p50=p50, p90=p90, p99=p99, max=int(sizes.max()))


def _words(route: bytes) -> list[bytes]:
    return [route[at : at + 4] for at in range(0, len(route), 4)]


def _code(raw: int, layers: int, codewords: int) -> list[int]:
    code: list[int] = []
    for _ in range(layers):
        raw, word = divmod(raw, codewords)
        code.append(word)
    return code[::-1]
