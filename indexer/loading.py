"""The live view rebuilt from a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.counters import CounterRows
from indexer.order import Order
from indexer.ragged import RaggedPool
from indexer.store import Store
from indexer.view import LiveView
from schemas.errors import StoreCorruptError

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_CHUNK = 16_384
_ORDERED = Order()


def load_view(store: Store, codewords: F32, order: Order = _ORDERED) -> LiveView:
    """Rebuild the live view from a store. ``codewords`` is (F, L, M, d) float32.

    Raises:
        StoreCorruptError: if records do not decode or contradict each other.
    """
    view = LiveView(store.meta(), store.totals(), codewords, order)
    view.positions = store.offsets()
    _load_items(store, view)
    _load_stats(store, view)
    postings = [_load_facet(store, view, facet) for facet in range(view.meta.facets)]
    members = view.members
    members.ensure_rows(max(view.totals.next_leaf, default=0) * members.facets)
    members.ensure_items(view.totals.next_ordinal)
    members.fill(*(np.concatenate(column) for column in zip(*postings, strict=True)))
    for facet in view.facets:
        facet.leaves["centred"][:] = facet.sizes()
    _load_vectors(store, view)
    members.reheat(view.heats(np.arange(len(view.items))))
    view.sort(np.flatnonzero(members.length))
    return view


def _chunks(rows: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Cut a stream of (key, value) into lists of keys and values."""
    many_keys: list[bytes] = []
    values: list[bytes] = []
    for key, value in rows:
        many_keys.append(key)
        values.append(value)
        if len(many_keys) == _CHUNK:
            yield many_keys, values
            many_keys, values = [], []
    if many_keys:
        yield many_keys, values


def _fixed(values: list[bytes], dtype: np.dtype[np.void], what: str) -> npt.NDArray[np.void]:
    width = dtype.itemsize
    joined = b"".join([value[:width] for value in values])
    if len(joined) != width * len(values):
        raise StoreCorruptError(f"a record in {what} is shorter than {width} bytes; restore a checkpoint or replay")
    return np.frombuffer(joined, dtype)


def _ordinals(many_keys: list[bytes], limit: int, what: str) -> I64:
    ordinals = keys.ordinals(many_keys, what)
    if len(ordinals) and ordinals.max() >= limit:
        raise StoreCorruptError(f"a key in {what} is no known ordinal; restore a checkpoint or replay")
    return ordinals


def _load_items(store: Store, view: LiveView) -> None:
    total = view.totals.next_ordinal
    items, facets = view.items, view.meta.facets
    items.resize(total)
    dtype = keys.item_dtype(facets)
    view.ids = [""] * total
    for many_keys, values in _chunks(store.scan("items")):
        ordinals = _ordinals(many_keys, total, "items")
        rows = _fixed(values, dtype, "items")
        for name in ("state", "source", "created_at", "occurred_at", "offset", "raw", "leaf"):
            items[name][ordinals] = rows[name]
        for ordinal, value in zip(ordinals.tolist(), values, strict=True):
            item_id = value[dtype.itemsize :].decode()
            view.ids[ordinal] = item_id
            view.by_id[item_id] = ordinal


def _load_vectors(store: Store, view: LiveView) -> None:
    """Embeddings to where their items stand; those of items without a posting are left for ``check_adds_up``."""
    members, facets = view.members, view.meta.facets
    width = facets * view.meta.dim
    for many_keys, values in _chunks(store.scan("vectors")):
        ordinals = _ordinals(many_keys, view.totals.next_ordinal, "vectors")
        vectors = _fixed(values, np.dtype([("v", "<f2", (width,))]), "vectors")["v"].reshape(-1, facets, view.meta.dim)
        for facet in range(facets):
            rows = view.facets[facet].members.rows(view.items["leaf"][ordinals, facet])
            there = members.holds(rows, ordinals)
            members.set_vectors(rows[there], ordinals[there], vectors[there, facet])


def _load_stats(store: Store, view: LiveView) -> None:
    windows = len(view.meta.half_lives_s)
    base = keys.stats_dtype(windows, 0).itemsize
    view.items.widen("counts", len(view.totals.kinds))
    for many_keys, values in _chunks(store.scan("stats")):
        ordinals = _ordinals(many_keys, view.totals.next_ordinal, "stats")
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        for length in np.unique(lengths):  # older records know fewer kinds
            dtype = keys.stats_dtype(windows, int(length - base) // 4)
            at = np.flatnonzero(lengths == length)
            rows = _fixed([values[i] for i in at], dtype, "stats")
            counters = CounterRows(rows["counts"], rows["epochs"], rows["decayed"], rows["value_sum"], rows["last_at"])
            view.set_counters(ordinals[at], counters)


def _load_facet(store: Store, view: LiveView, facet: int) -> tuple[I64, npt.NDArray[np.uint32]]:
    """Leaves and routes of one facet; returns the rows and ordinals of its postings."""
    f = view.facets[facet]
    prefix = bytes([facet])
    count = view.totals.next_leaf[facet]
    f.ensure_leaves(count)
    for key, value in store.scan("leaves", prefix):
        leaf = keys.numbered(key, "leaves")
        record = keys.leaf_record(value)
        if leaf >= count or len(record.centroid) != view.meta.dim:
            raise StoreCorruptError(
                f"leaf {leaf} of facet {facet} contradicts the totals; restore a checkpoint or replay"
            )
        f.leaves["alive"][leaf] = True
        f.leaves["state"][leaf] = record.state
        f.leaves["version"][leaf] = record.version
        f.leaves["marked_size"][leaf] = record.marked_size
        f.leaves["centroid"][leaf] = record.centroid

    parts = [
        keys.posting_arrays(many) for many, _ in _chunks((key, key) for key in store.scan_keys("postings", prefix))
    ]
    leaves = np.concatenate([part[1] for part in parts]) if parts else np.empty(0, np.int64)
    ordinals = np.concatenate([part[2] for part in parts]) if parts else np.empty(0, np.int64)
    if len(leaves) and (leaves.max() >= count or ordinals.max() >= view.totals.next_ordinal):
        raise StoreCorruptError(
            f"a posting of facet {facet} names an unknown leaf or item; restore a checkpoint or replay"
        )
    postings = f.members.rows(leaves), ordinals.astype(np.uint32)

    raw_of: list[int] = []
    targets: list[npt.NDArray[np.uint32]] = []
    for key, value in store.scan("routes", prefix):
        raw_of.append(keys.numbered(key, "routes"))
        targets.append(keys.u32_values(value, "routes"))
    counts = np.fromiter(map(len, targets), np.int64, len(targets))
    raws = np.repeat(np.array(raw_of, np.int64), counts)
    flat = np.concatenate(targets) if targets else np.empty(0, np.uint32)
    if len(flat) and flat.max() >= count:
        raise StoreCorruptError(f"a route of facet {facet} names an unknown leaf; restore a checkpoint or replay")
    f.routes = RaggedPool.from_sorted(f.raw_indices, raws, flat)
    order = np.argsort(flat, kind="stable")
    f.raws = RaggedPool.from_sorted(count, flat[order].astype(np.int64), raws[order].astype(np.uint32))
    return postings
