"""Reading a store directly, for tools beside a running daemon."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.counters import CounterRows, decayed_counts
from indexer.hot import LONGEST, Hot, hot_keys, hottest, ordinals_of
from indexer.ids import encode
from indexer.keys import ItemState
from indexer.labels import Allowed, Filter
from indexer.members import MemberPool
from indexer.order import Impact, Order
from indexer.retrieval.readers import Located
from indexer.retrieval.request import Centroids, Pool, Served
from indexer.routing import nearest_of
from indexer.store import Store

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_ORDERED = Order()


class StoreReader:
    """An :class:`indexer.retrieval.readers.IndexReader` on a store; consistent between two catch-ups.

    Posting lists are put in order as they are read: always wholly, as with an ``order.slack`` of 0.
    """

    def __init__(self, store: Store, order: Order = _ORDERED) -> None:
        self._store = store
        self.meta = store.meta()
        self._impact = Impact(order, self.meta)
        self._kinds = len(store.totals().kinds)

    def frozen(self) -> AbstractContextManager[object]:
        """See :class:`IndexReader`; a store stands still between two catch-ups."""
        return nullcontext()

    def locate(self, item_ids: Sequence[str]) -> Located:
        """See :class:`IndexReader`."""
        found: list[int] = []
        leaves: list[npt.NDArray[np.uint32]] = []
        missing: list[str] = []
        for item_id, encoded in zip(item_ids, encode(item_ids), strict=True):
            key = self._store.get("ids", encoded)
            value = None if key is None else self._store.get("items", key)
            record = None if value is None else keys.item_record(value, self.meta.facets)
            if key is None or record is None or record.state != ItemState.LIVE:
                missing.append(item_id)
            else:
                found.append(keys.u64(key, "ids"))
                leaves.append(record.leaf)
        ordinals = np.array(found, np.int64)
        vectors = self._store.vectors(ordinals, self.meta.facets, self.meta.dim).astype(np.float32)
        stacked = np.array(leaves, np.int64).reshape(-1, self.meta.facets)
        return Located(ordinals, stacked, vectors, missing)

    def ordinals(self, item_ids: Sequence[str]) -> I64:
        """See :class:`IndexReader`."""
        found = self._store.get_many("ids", encode(item_ids))
        return np.array([-1 if value is None else keys.u64(value, "ids") for value in found], np.int64)

    def enter(self, vectors: F32, raws: npt.NDArray[np.uint32]) -> I64:
        """See :class:`IndexReader`."""
        out = np.full(raws.shape, -1, np.int64)
        for facet in range(raws.shape[1]):
            for row, raw in enumerate(raws[:, facet].tolist()):
                value = self._store.get("routes", keys.FACET_U32.pack(facet, raw))
                if value is None:
                    continue
                candidates = keys.u32_values(value, "routes").astype(np.int64)
                centroids = np.stack([self._centroid(facet, leaf) for leaf in candidates.tolist()])
                every = np.arange(len(candidates))
                at = nearest_of(vectors[row : row + 1, facet], centroids, every, np.array([len(every)]))
                out[row, facet] = candidates[at[0]]
        return out

    def _centroid(self, facet: int, leaf: int) -> F32:
        value = self._store.get("leaves", keys.FACET_U32.pack(facet, leaf))
        return keys.leaf_record(value or b"").centroid

    def centroids(self) -> Centroids:
        """See :class:`IndexReader`."""
        facets = []
        for facet in range(self.meta.facets):
            ids: list[int] = []
            centroids: list[F32] = []
            for key, value in self._store.scan("leaves", bytes([facet])):
                ids.append(keys.numbered(key, "leaves"))
                centroids.append(keys.leaf_record(value).centroid)
            facets.append((np.array(ids, np.int64), np.array(centroids, np.float32).reshape(-1, self.meta.dim)))
        return Centroids.of(facets)

    def posting(self, facet: int, leaf: int) -> I64:
        """Members of a posting list, ascending."""
        found = list(self._store.scan_keys("postings", keys.FACET_U32.pack(facet, leaf)))
        return keys.posting_arrays(found)[2]

    def members(self, facet: int, leaf: int, limit: int) -> I64:
        """See :class:`IndexReader`."""
        served, _ = self.serve(np.array([facet]), np.array([leaf]), np.empty(0, np.int64))
        row = leaf * self.meta.facets + facet
        begin = served.pool.start[row]
        at = served.pool.ordinal[begin : begin + served.pool.length[row]][:limit]
        return np.empty(0, np.int64) if served.names is None else served.names[at]

    def serve(self, facets: I64, leaves: I64, skip: I64) -> tuple[Served, I64]:
        """See :class:`IndexReader`; a pool of the leaves that are asked for, in order."""
        count, dim = self.meta.facets, self.meta.dim
        rows = np.unique(leaves * count + facets)
        lists = [self.posting(int(row % count), int(row // count)) for row in rows.tolist()]
        every = np.concatenate(lists) if lists else np.empty(0, np.int64)
        names, members = np.unique(every, return_inverse=True)

        counters, impact, landmark = self.counters(names), self._impact, self._landmark()
        created_at, labels = self._times_and_labels(names)
        pool = MemberPool(count, dim)
        pool.ensure_rows(int(rows.max(initial=-1)) + 1)
        pool.ensure_items(max(1, len(names)))
        row_of = np.repeat(rows, [len(each) for each in lists])
        vectors = self._store.vectors(names, count, dim)
        heats = impact.heats(counters, created_at, landmark)
        pool.append(row_of, members, vectors[members, row_of % count], heats[members])
        pool.sort(rows, created_at, impact.creation, impact.half_life_s, landmark)
        leaf = np.zeros((max(1, len(names)), count), np.uint32)
        leaf[members, row_of % count] = row_of // count
        arrays = Pool(
            pool.start, pool.length, pool.ordered, pool.ordinal, pool.heat, pool.bits, pool.place,
            leaf, created_at, labels, counters.last_at, counters.epochs, counters.decayed,
        )  # fmt: skip
        served = Served(
            arrays, impact.learned, impact.window, landmark, int(counters.last_at.max(initial=0)), names,
        )  # fmt: skip
        at = np.minimum(np.searchsorted(names, skip), max(0, len(names) - 1))
        there = names[at] == skip if len(names) else np.zeros(len(skip), np.bool_)
        return served, np.where(there, at, -1)

    def straight(self, *, neighbours: bool) -> None:
        """See :class:`IndexReader`; leaves are fetched first."""

    def vectors(self, facet: int, ordinals: I64) -> F32:
        """See :class:`IndexReader`."""
        return self._store.vectors(ordinals, self.meta.facets, self.meta.dim)[:, facet].astype(np.float32)

    def counters(self, ordinals: I64) -> CounterRows:
        """Counters of n ordinals, zero where an item has none."""
        windows = len(self.meta.half_lives_s)
        base = keys.stats_dtype(windows, 0).itemsize
        packed = np.zeros(len(ordinals), keys.stats_dtype(windows, self._kinds))
        width = packed.dtype.itemsize
        for row, value in enumerate(self._store.get_many("stats", keys.ordinal_keys(ordinals))):
            if value is not None:
                whole = value.ljust(width, b"\0") if len(value) >= base else b"\0" * width
                packed[row] = np.frombuffer(whole[:width], packed.dtype)[0]
        return CounterRows(
            *(
                np.ascontiguousarray(packed[name]).copy()
                for name in ("counts", "epochs", "decayed", "value_sum", "last_at")
            )
        )

    def _landmark(self) -> int:
        return self._impact.as_of(self._store.totals())

    def worth(self, ordinals: I64) -> F32 | None:
        """See :class:`IndexReader`."""
        if not self._impact.learned:
            return None
        return self._impact.heats(self.counters(ordinals), self.created_at(ordinals), self._landmark())

    def engagement(self, ordinals: I64, window: int, now_ms: int) -> npt.NDArray[np.float64]:
        """See :class:`IndexReader`."""
        return decayed_counts(self.counters(ordinals), now_ms, self.meta.half_lives_s)[:, window]

    def created_at(self, ordinals: I64) -> I64:
        """See :class:`IndexReader`."""
        return self._times_and_labels(ordinals)[0]

    def _times_and_labels(self, ordinals: I64) -> tuple[I64, npt.NDArray[np.uint32]]:
        dtype = keys.item_dtype(self.meta.facets)
        values = self._store.get_many("items", keys.ordinal_keys(ordinals))
        none = bytes(dtype.itemsize)
        rows = keys.fixed_parts([none if value is None else value for value in values], dtype, "items")
        return rows["created_at"].astype(np.int64), rows["labels"].astype(np.uint32)

    def allowed(self, wanted: Filter) -> Allowed:
        """See :class:`IndexReader`."""
        return self._store.labels().allowed(wanted)

    def hot(self) -> Hot:
        """See :class:`IndexReader`; all items are looked at each time."""
        dtype = keys.item_dtype(self.meta.facets)
        names: list[bytes] = []
        values: list[bytes] = []
        for some, of_them in self._store.scan_many("items"):
            names += some
            values += [value[: dtype.itemsize] for value in of_them]
        rows = keys.fixed_parts(values, dtype, "items")
        live = np.flatnonzero(rows["state"] == ItemState.LIVE)
        ordinals = keys.ordinals(names, "items")[live]
        created_at, labels = rows["created_at"][live].astype(np.int64), rows["labels"][live].astype(np.uint32)
        impact, landmark = self._impact, self._landmark()
        heats = impact.heats(self.counters(ordinals), created_at, landmark)
        best = hottest(hot_keys(impact, ordinals, heats, created_at, landmark), LONGEST)[::-1]
        at = np.searchsorted(ordinals, ordinals_of(best))
        return Hot.of(best, impact, landmark, created_at[at], labels[at])

    def item_ids(self, ordinals: I64) -> list[str]:
        """See :class:`IndexReader`."""
        values = self._store.get_many("items", keys.ordinal_keys(ordinals))
        return ["" if value is None else keys.item_record(value, self.meta.facets).item_id for value in values]
