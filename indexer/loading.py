"""The live view rebuilt from a store.

Some seven records an item, a million items: what each record needs is done by loops in C (``join``, ``map``, numpy) and
by compiled kernels, never by a loop in Python. RocksDB's iterator keeps the interpreter's lock, the kernels do without
it, so they work on a thread of their own beside it. Postings are not read: they say what the items say, and
:mod:`indexer.adds_up` compares what can be compared without reading them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer import loading_kernels as kernels
from indexer.counters import CounterRows
from indexer.keys import ItemState
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
    live = view.items["state"] == ItemState.LIVE
    _check_leaves(view, live)
    members.build(live, view.items["leaf"], _heats(view))
    view.sort(np.flatnonzero(members.length), bare=True)
    for facet in view.facets:
        facet.leaves["centred"][:] = facet.sizes()
    _load_vectors(store, view, np.flatnonzero(live))
    return view


class _Beside:
    """A thread that is given work in order; whoever gives it waits once too much is under way, as that takes memory."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1)
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=error is not None)

    def give(self, work: Callable[[], None]) -> None:
        """Have it done; raises what earlier work raised."""
        self._under_way.append(self._threads.submit(work))
        if len(self._under_way) > _UNDER_WAY:
            self._under_way.popleft().result()

    def finish(self) -> None:
        """Wait for all of it; raises what it raised."""
        while self._under_way:
            self._under_way.popleft().result()


def _ordinals(many_keys: list[bytes], limit: int, what: str) -> I64:
    ordinals = keys.ordinals(many_keys, what)
    if len(ordinals) and not 0 <= ordinals.min() <= ordinals.max() < limit:
        raise StoreCorruptError(f"a key in {what} is no known ordinal; restore a checkpoint or replay")
    return ordinals


def _load_items(store: Store, view: LiveView) -> None:
    total, first = view.totals.next_ordinal, 0
    view.items.resize(total)
    with _Beside() as beside:
        for values in store.scan_values("items", np.arange(total)):
            beside.give(partial(_take_items, view, first, values))
            first += len(values)
        beside.finish()


def _take_items(view: LiveView, first: int, values: list[bytes]) -> None:
    """Items from ordinal ``first`` on."""
    dtype = keys.item_dtype(view.meta.facets)
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    if lengths.min() < dtype.itemsize:
        raise StoreCorruptError(
            f"a record in items is shorter than {dtype.itemsize} bytes; restore a checkpoint or replay"
        )
    fixed = np.empty((len(values), dtype.itemsize), np.uint8)
    texts = np.empty(int(lengths.sum()) - fixed.size, np.uint8)
    kernels.part(np.frombuffer(b"".join(values), np.uint8), lengths, fixed, texts)
    rows = fixed.view(dtype)[:, 0]
    for name in ("state", "source", "labels", "created_at", "occurred_at", "offset", "raw", "leaf"):
        view.items[name][first : first + len(rows)] = rows[name]
    view.ids.add_texts(lengths - dtype.itemsize, texts)


def _check_leaves(view: LiveView, live: npt.NDArray[np.bool_]) -> None:
    """Raise if a live item is in a leaf that was never made."""
    for number, limit in enumerate(view.totals.next_leaf):
        if (live & (view.items["leaf"][:, number] >= limit)).any():
            raise StoreCorruptError(f"an item names an unknown leaf of facet {number}; restore a checkpoint or replay")


def _load_vectors(store: Store, view: LiveView, live: I64) -> None:
    """Embeddings to where their items stand; ``live`` are the ordinals that have one."""
    width, first = np.dtype("<f2").itemsize * view.meta.facets * view.meta.dim, 0
    with _Beside() as beside:
        for values in store.scan_values("vectors", live):
            if set(map(len, values)) != {width}:
                raise StoreCorruptError(
                    f"an embedding in vectors has not {width} bytes; restore a checkpoint or replay"
                )
            beside.give(partial(_take_vectors, view, live[first : first + len(values)], values))
            first += len(values)
        beside.finish()


def _take_vectors(view: LiveView, ordinals: I64, values: list[bytes]) -> None:
    vectors = np.frombuffer(b"".join(values), "<f2").reshape(len(values), view.meta.facets, view.meta.dim)
    view.members.load_vectors(view.items["leaf"], ordinals, vectors)


def _load_stats(store: Store, view: LiveView) -> None:
    windows = len(view.meta.half_lives_s)
    base = keys.stats_dtype(windows, 0).itemsize
    view.items.widen("counts", len(view.totals.kinds))
    for many_keys, values in store.scan_many("stats"):
        ordinals = _ordinals(many_keys, view.totals.next_ordinal, "stats")
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        for length in np.unique(lengths):  # older records know fewer kinds
            dtype = keys.stats_dtype(windows, max(0, int(length - base) // 4))
            at = np.flatnonzero(lengths == length)
            some = values if len(at) == len(values) else [values[i] for i in at.tolist()]
            rows = keys.fixed_parts(some, dtype, "stats")
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
    limits, dtype = np.array(view.totals.next_leaf, np.int64), keys.leaf_dtype(view.meta.dim)
    for many_keys, values in store.scan_many("leaves"):
        facets, numbers = keys.numbered_arrays(many_keys, "leaves")
        odd = facets >= len(limits)
        odd |= numbers >= limits[np.where(odd, 0, facets)]
        odd |= np.fromiter(map(len, values), np.int64, len(values)) != dtype.itemsize
        if odd.any():
            at = int(odd.argmax())
            raise StoreCorruptError(
                f"leaf {numbers[at]} of facet {facets[at]} contradicts the totals or does not decode; restore a "
                "checkpoint or replay"
            )
        rows = np.frombuffer(b"".join(values), dtype)
        for facet in np.unique(facets).tolist():
            mine, leaves = facets == facet, view.facets[facet].leaves
            leaves["alive"][numbers[mine]] = True
            for name in ("state", "version", "marked_size", "centroid"):
                leaves[name][numbers[mine]] = rows[name][mine]


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
