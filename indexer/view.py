"""The live view: the store's content as arrays, rebuilt at start and kept current by the writer.

The writer changes it under ``lock`` after each atomic write; readers copy what they need under the same lock, so they
never see half of a batch, a split or a merge.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.counters import CounterRows
from indexer.keys import LeafState
from indexer.ragged import RaggedPool
from indexer.store import Store
from schemas.errors import StoreCorruptError
from schemas.store import StoreMeta, Totals

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

Watcher = Callable[[I64, I64], None]

_CHUNK = 16_384


class Rows:
    """Named arrays that share their first axis and grow together by doubling."""

    def __init__(self, **shapes: tuple[Any, tuple[int, ...]]) -> None:
        self._arrays = {name: np.zeros((0, *shape), dtype) for name, (dtype, shape) in shapes.items()}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """The array with its spare room cut off; writing to it writes through."""
        return self._arrays[name][: self._size]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(array.nbytes for array in self._arrays.values())

    def resize(self, size: int) -> None:
        """Make room for ``size`` rows; new ones are zero."""
        have = len(next(iter(self._arrays.values())))
        if size > have:
            room = max(size, have + have // 2, 1_024)
            for name, array in self._arrays.items():
                grown = np.zeros((room, *array.shape[1:]), array.dtype)
                grown[:have] = array
                self._arrays[name] = grown
        self._size = max(self._size, size)

    def widen(self, name: str, width: int) -> None:
        """Grow the second axis of one array."""
        array = self._arrays[name]
        if width > array.shape[1]:
            grown = np.zeros((len(array), width, *array.shape[2:]), array.dtype)
            grown[:, : array.shape[1]] = array
            self._arrays[name] = grown


class FacetView:
    """Leaves, posting lists and routes of one facet.

    Attributes:
        codewords: (L, M, d) float32 of this facet.
        leaves: arrays by leaf id: state, version, marked_size, alive, centroid (d,).
        members: leaf -> ordinals.
        routes: raw index -> candidate leaves.
        raws: leaf -> raw indices routed to it.
    """

    def __init__(self, codewords: F32) -> None:
        layers, width, dim = codewords.shape
        self.codewords = codewords
        self.raw_indices = width**layers
        self.leaves = Rows(
            state=(np.uint8, ()),
            version=(np.uint32, ()),
            marked_size=(np.uint32, ()),
            alive=(np.bool_, ()),
            centroid=(np.float32, (dim,)),
        )
        self.members = RaggedPool()
        self.routes = RaggedPool(self.raw_indices)
        self.raws = RaggedPool()

    def sizes(self) -> I64:
        """(leaf ids,) members of each leaf; a live view."""
        return self.members.lengths[: len(self.leaves)]

    def alive(self) -> I64:
        """Ids of the live leaves, ascending."""
        return np.flatnonzero(self.leaves["alive"])

    def parents(self, raws: I64) -> I64:
        """(n,) first-layer codeword of each raw index."""
        return np.asarray(raws // (self.raw_indices // self.codewords.shape[1]), np.int64)

    def ensure_leaves(self, count: int) -> None:
        """Make leaf ids below ``count`` exist."""
        self.leaves.resize(count)
        self.members.ensure_rows(count)
        self.raws.ensure_rows(count)

    def reconstruct(self, raws: npt.NDArray[np.integer]) -> F32:
        """(n, d) sum of the codewords that n raw indices name (digest section 2.2)."""
        layers, width, dim = self.codewords.shape
        out = np.zeros((len(raws), dim), np.float32)
        rest = raws.astype(np.int64)
        for layer in range(layers - 1, -1, -1):
            out += self.codewords[layer, rest % width]
            rest = rest // width
        return out

    def add_leaf(self, leaf: int, centroid: F32) -> None:
        """Bring a new leaf to life."""
        self.ensure_leaves(leaf + 1)
        self.leaves["alive"][leaf] = True
        self.leaves["centroid"][leaf] = centroid

    def retire_leaf(self, leaf: int) -> None:
        """Let a leaf go; its id is never used again."""
        self.leaves["alive"][leaf] = False
        self.leaves["state"][leaf] = LeafState.RETIRED
        self.members.replace(leaf, np.empty(0, np.uint32))
        self.raws.replace(leaf, np.empty(0, np.uint32))


class LiveView:
    """Items, counters and facets of one store.

    Attributes:
        lock: held by the writer while it changes anything here, by readers while they copy.
        items: arrays by ordinal: state, source, created_at, occurred_at, offset, raw (F,), leaf (F,), vector (F, d),
            counts (K,), epochs (W,), decayed (W,), value_sum, last_at.
        ids: ordinal -> item id; by_id: item id -> ordinal.
        totals: as of the last applied batch.
        positions: partition name -> next offset.
        watchers: told, under ``lock``, before a batch changes anything here: ordinals of which the item is about to
            change, and those of which the counters are. Some may be new.
    """

    def __init__(self, meta: StoreMeta, totals: Totals, codewords: F32) -> None:
        windows = len(meta.half_lives_s)
        self.meta = meta
        self.totals = totals
        self.lock = threading.RLock()
        self.items = Rows(
            state=(np.uint8, ()),
            source=(np.uint16, ()),
            created_at=(np.int64, ()),
            occurred_at=(np.int64, ()),
            offset=(np.int64, ()),
            raw=(np.uint32, (meta.facets,)),
            leaf=(np.uint32, (meta.facets,)),
            vector=(np.float16, (meta.facets, meta.dim)),
            counts=(np.uint32, (0,)),
            epochs=(np.int32, (windows,)),
            decayed=(np.float64, (windows,)),
            value_sum=(np.float64, ()),
            last_at=(np.int64, ()),
        )
        self.ids: list[str] = []
        self.by_id: dict[str, int] = {}
        self.facets = [FacetView(codewords[facet]) for facet in range(meta.facets)]
        self.positions: dict[str, int] = {}
        self.watchers: list[Watcher] = []

    def counters(self, ordinals: I64) -> CounterRows:
        """Counters of n ordinals, copied."""
        items = self.items
        return CounterRows(
            items["counts"][ordinals],
            items["epochs"][ordinals],
            items["decayed"][ordinals],
            items["value_sum"][ordinals],
            items["last_at"][ordinals],
        )

    def set_counters(self, ordinals: I64, rows: CounterRows) -> None:
        """Write counters of n distinct ordinals."""
        items = self.items
        items.widen("counts", rows.counts.shape[1])
        items["counts"][ordinals, : rows.counts.shape[1]] = rows.counts
        items["epochs"][ordinals] = rows.epochs
        items["decayed"][ordinals] = rows.decayed
        items["value_sum"][ordinals] = rows.value_sum
        items["last_at"][ordinals] = rows.last_at

    def ordinals_of(self, item_ids: Sequence[str]) -> I64:
        """(n,) ordinals, -1 where an id was never seen."""
        get = self.by_id.get
        return np.fromiter((get(item_id, -1) for item_id in item_ids), np.int64, len(item_ids))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; ids and their table not counted."""
        facets = sum(f.leaves.nbytes + f.members.nbytes + f.routes.nbytes + f.raws.nbytes for f in self.facets)
        return self.items.nbytes + facets


def load_view(store: Store, codewords: F32) -> LiveView:
    """Rebuild the live view from a store. ``codewords`` is (F, L, M, d) float32.

    Raises:
        StoreCorruptError: if records do not decode or contradict each other.
    """
    view = LiveView(store.meta(), store.totals(), codewords)
    view.positions = store.offsets()
    _load_items(store, view)
    _load_stats(store, view)
    for facet in range(view.meta.facets):
        _load_facet(store, view, facet)
    return view


def _chunks(rows: Any) -> Any:
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
    width = facets * view.meta.dim
    for many_keys, values in _chunks(store.scan("vectors")):
        ordinals = _ordinals(many_keys, total, "vectors")
        vectors = _fixed(values, np.dtype([("v", "<f2", (width,))]), "vectors")["v"]
        items["vector"][ordinals] = vectors.reshape(-1, facets, view.meta.dim)


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


def _load_facet(store: Store, view: LiveView, facet: int) -> None:
    f = view.facets[facet]
    prefix = bytes([facet])
    count = view.totals.next_leaf[facet]
    f.leaves.resize(count)
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
    f.members = RaggedPool.from_sorted(count, leaves, ordinals.astype(np.uint32))

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
