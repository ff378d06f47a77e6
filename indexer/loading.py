"""The live view rebuilt from a store.

Some seven records an item, a million items: what each record needs is done by loops in C (``join``, ``map``, numpy) and
by compiled kernels, never by a loop in Python.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

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
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]

_ORDERED = Order()
_UNDER_WAY: Final = 8


def load_view(store: Store, codewords: F32, order: Order = _ORDERED) -> LiveView:
    """Rebuild the live view from a store. ``codewords`` is (F, L, M, d) float32.

    Raises:
        StoreCorruptError: if records do not decode or contradict each other.
    """
    view = LiveView(store.meta(), store.totals(), codewords, order)
    view.positions = store.offsets()
    view.labels = store.labels()
    _load_items(store, view)
    _load_stats(store, view)
    _load_leaves(store, view)
    _load_routes(store, view)
    members = view.members
    members.ensure_rows(max(view.totals.next_leaf, default=0) * members.facets)
    members.ensure_items(view.totals.next_ordinal)
    members.build(*_postings(store, view), _heats(view))
    view.sort(np.flatnonzero(members.length), bare=True)
    for facet in view.facets:
        facet.leaves["centred"][:] = facet.sizes()
    _load_vectors(store, view)
    return view


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
    width = dtype.itemsize
    for many_keys, values in store.scan_many("items"):
        ordinals = _ordinals(many_keys, total, "items")
        rows = _fixed(values, dtype, "items")
        for name in ("state", "source", "labels", "created_at", "occurred_at", "offset", "raw", "leaf"):
            items[name][ordinals] = rows[name]
        lengths = np.zeros(int(ordinals[-1]) + 1 - len(view.ids), np.int64)  # 0 where a record is missing
        lengths[ordinals - len(view.ids)] = np.fromiter(map(len, values), np.int64, len(values)) - width
        view.ids.add_texts(lengths, np.frombuffer(b"".join([value[width:] for value in values]), np.uint8))
    view.ids.add_texts(np.zeros(total - len(view.ids), np.int64), np.empty(0, np.uint8))


def _load_vectors(store: Store, view: LiveView) -> None:
    """Embeddings to where their items stand; those of items without a posting are left for ``check_adds_up``."""
    dtype = np.dtype([("v", "<f2", (view.meta.facets, view.meta.dim))])
    leaf = view.items["leaf"]
    under_way: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as beside:  # half of the time goes to memory, without the interpreter's lock
        for many_keys, values in store.scan_many("vectors"):
            ordinals = _ordinals(many_keys, view.totals.next_ordinal, "vectors")
            rows = _fixed(values, dtype, "vectors")["v"]
            under_way.append(beside.submit(view.members.load_vectors, leaf, ordinals, rows))
            if len(under_way) > _UNDER_WAY:
                under_way.popleft().result()
    for each in under_way:
        each.result()


def _load_stats(store: Store, view: LiveView) -> None:
    windows = len(view.meta.half_lives_s)
    base = keys.stats_dtype(windows, 0).itemsize
    view.items.widen("counts", len(view.totals.kinds))
    for many_keys, values in store.scan_many("stats"):
        ordinals = _ordinals(many_keys, view.totals.next_ordinal, "stats")
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        for length in np.unique(lengths):  # older records know fewer kinds
            dtype = keys.stats_dtype(windows, int(length - base) // 4)
            at = np.flatnonzero(lengths == length)
            rows = _fixed(values if len(at) == len(values) else [values[i] for i in at.tolist()], dtype, "stats")
            counters = CounterRows(rows["counts"], rows["epochs"], rows["decayed"], rows["value_sum"], rows["last_at"])
            view.set_counters(ordinals[at], counters)


def _heats(view: LiveView) -> F32:
    """(items,) heat of each item; most were never engaged."""
    if view.impact.learned:  # what was never engaged is worth something, too
        return view.heats(np.arange(len(view.items)))
    heats = np.zeros(len(view.items), np.float32)
    engaged = np.flatnonzero(view.items["decayed"][:, view.order.window])
    heats[engaged] = view.heats(engaged)
    return heats


def _load_leaves(store: Store, view: LiveView) -> None:
    for facet, count in zip(view.facets, view.totals.next_leaf, strict=True):
        facet.ensure_leaves(count)
    for key, value in store.scan("leaves"):
        number, leaf = key[0], keys.numbered(key, "leaves")
        record = keys.leaf_record(value)
        known = number < len(view.facets) and leaf < view.totals.next_leaf[number]
        if not known or len(record.centroid) != view.meta.dim:
            raise StoreCorruptError(
                f"leaf {leaf} of facet {number} contradicts the totals; restore a checkpoint or replay"
            )
        leaves = view.facets[number].leaves
        leaves["alive"][leaf] = True
        leaves["state"][leaf] = record.state
        leaves["version"][leaf] = record.version
        leaves["marked_size"][leaf] = record.marked_size
        leaves["centroid"][leaf] = record.centroid


def _postings(store: Store, view: LiveView) -> tuple[U32, U32]:
    """Rows of the pool and ordinals of all postings, (n,) each."""
    rows, ordinals = [np.empty(0, np.uint32)], [np.empty(0, np.uint32)]
    limits = np.array(view.totals.next_leaf, np.int64)
    for many_keys in store.scan_many_keys("postings"):
        facet, leaf, ordinal = keys.posting_arrays(many_keys)
        if facet.max() >= len(limits) or (leaf >= limits[facet]).any() or ordinal.max() >= view.totals.next_ordinal:
            raise StoreCorruptError("a posting names an unknown leaf or item; restore a checkpoint or replay")
        rows.append((leaf * len(limits) + facet).astype(np.uint32))
        ordinals.append(ordinal.astype(np.uint32))
    return np.concatenate(rows), np.concatenate(ordinals)


def _load_routes(store: Store, view: LiveView) -> None:
    facets, raws, targets = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
    for many_keys, values in store.scan_many("routes"):
        facet, raw = keys.numbered_arrays(many_keys, "routes")
        counts = np.fromiter(map(len, values), np.int64, len(values))
        if (counts % 4).any():
            raise keys.undecodable("routes", values[int((counts % 4).argmax())])
        facets.append(np.repeat(facet, counts // 4))
        raws.append(np.repeat(raw, counts // 4))
        targets.append(np.frombuffer(b"".join(values), "<u4"))
    of_facet, all_raws, all_targets = np.concatenate(facets), np.concatenate(raws), np.concatenate(targets)
    for number, (f, count) in enumerate(zip(view.facets, view.totals.next_leaf, strict=True)):
        mine = of_facet == number
        raw, target = all_raws[mine], all_targets[mine]
        if len(raw) and (target.max() >= count or raw.max() >= f.raw_indices):
            raise StoreCorruptError(
                f"a route of facet {number} names an unknown leaf or raw index; restore a checkpoint or replay"
            )
        f.routes = RaggedPool.from_sorted(f.raw_indices, raw, target)
        order = np.argsort(target, kind="stable")
        f.raws = RaggedPool.from_sorted(count, target[order].astype(np.int64), raw[order].astype(np.uint32))
