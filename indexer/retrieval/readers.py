"""What retrieval reads: the live view of a writer, or a store opened beside one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.counters import CounterRows, decayed_counts
from indexer.keys import ItemState
from indexer.store import Store
from indexer.view import LiveView
from schemas.store import StoreMeta

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Located:
    """Live items: ordinals (n,), leaves (n, F), vectors (n, F, d) float32; ``missing`` are ids that are not live."""

    ordinals: I64
    leaves: I64
    vectors: F32
    missing: list[str]


class IndexReader(Protocol):
    """Read access to one index."""

    meta: StoreMeta

    def frozen(self) -> AbstractContextManager[object]:
        """While it is entered, all calls answer from one state: no split or merge comes between them. Keep it short."""
        ...

    def locate(self, item_ids: Sequence[str]) -> Located:
        """Find items by id."""
        ...

    def members(self, facet: int, leaf: int, limit: int) -> I64:
        """The newest ``limit`` members of a posting list: its greatest ordinals, ascending."""
        ...

    def vectors(self, facet: int, ordinals: I64) -> F32:
        """(n, d) facet embeddings."""
        ...

    def centroids(self, facet: int) -> tuple[I64, F32]:
        """Live leaves (m,) and their centroids (m, d)."""
        ...

    def engagement(self, ordinals: I64, window: int, now_ms: int) -> npt.NDArray[np.float64]:
        """(n,) decayed engagement counts of one window."""
        ...

    def created_at(self, ordinals: I64) -> I64:
        """(n,) epoch milliseconds."""
        ...

    def item_ids(self, ordinals: I64) -> list[str]:
        """(n,) item ids."""
        ...


class ViewReader:
    """Reads the live view; each call is consistent in itself."""

    def __init__(self, view: LiveView) -> None:
        self._view = view
        self.meta = view.meta

    def frozen(self) -> AbstractContextManager[object]:
        """See :class:`IndexReader`; the writer waits meanwhile."""
        return self._view.lock

    def locate(self, item_ids: Sequence[str]) -> Located:
        """See :class:`IndexReader`."""
        with self._view.lock:
            ordinals = self._view.ordinals_of(item_ids)
            items = self._view.items
            known = ordinals >= 0
            live = known.copy()
            live[known] = items["state"][ordinals[known]] == ItemState.LIVE
            found = ordinals[live]
            missing = [item_id for item_id, there in zip(item_ids, live.tolist(), strict=True) if not there]
            leaves = items["leaf"][found].astype(np.int64)
            vectors = np.stack([self._view.vectors(found, facet) for facet in range(self.meta.facets)], 1)
            return Located(found, leaves, vectors.astype(np.float32), missing)

    def members(self, facet: int, leaf: int, limit: int) -> I64:
        """See :class:`IndexReader`."""
        with self._view.lock:
            members = self._view.facets[facet].members.row(leaf)
        # In the order of the store: the view's own depends on what was moved when, and answers must not.
        return np.sort(members)[-limit:].astype(np.int64)

    def vectors(self, facet: int, ordinals: I64) -> F32:
        """See :class:`IndexReader`."""
        with self._view.lock:
            return self._view.vectors(ordinals, facet).astype(np.float32)

    def centroids(self, facet: int) -> tuple[I64, F32]:
        """See :class:`IndexReader`."""
        with self._view.lock:
            leaves = self._view.facets[facet].alive()
            return leaves, self._view.facets[facet].leaves["centroid"][leaves]

    def engagement(self, ordinals: I64, window: int, now_ms: int) -> npt.NDArray[np.float64]:
        """See :class:`IndexReader`."""
        with self._view.lock:
            rows = self._view.counters(ordinals)
        return decayed_counts(rows, now_ms, self.meta.half_lives_s)[:, window]

    def created_at(self, ordinals: I64) -> I64:
        """See :class:`IndexReader`."""
        with self._view.lock:
            return np.asarray(self._view.items["created_at"][ordinals], np.int64)

    def item_ids(self, ordinals: I64) -> list[str]:
        """See :class:`IndexReader`."""
        return [self._view.ids[ordinal] for ordinal in ordinals.tolist()]


class StoreReader:
    """Reads a store directly, for tools beside a running daemon; consistent between two catch-ups."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.meta = store.meta()
        self._kinds = len(store.totals().kinds)

    def frozen(self) -> AbstractContextManager[object]:
        """See :class:`IndexReader`; a store stands still between two catch-ups."""
        return nullcontext()

    def locate(self, item_ids: Sequence[str]) -> Located:
        """See :class:`IndexReader`."""
        found: list[int] = []
        leaves: list[npt.NDArray[np.uint32]] = []
        missing: list[str] = []
        for item_id in item_ids:
            key = self._store.get("ids", item_id.encode())
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

    def members(self, facet: int, leaf: int, limit: int) -> I64:
        """See :class:`IndexReader`."""
        found = list(self._store.scan_keys("postings", keys.FACET_U32.pack(facet, leaf)))
        return keys.posting_arrays(found[-limit:])[2]

    def vectors(self, facet: int, ordinals: I64) -> F32:
        """See :class:`IndexReader`."""
        return self._store.vectors(ordinals, self.meta.facets, self.meta.dim)[:, facet].astype(np.float32)

    def centroids(self, facet: int) -> tuple[I64, F32]:
        """See :class:`IndexReader`."""
        ids: list[int] = []
        centroids: list[npt.NDArray[np.float32]] = []
        for key, value in self._store.scan("leaves", bytes([facet])):
            ids.append(keys.numbered(key, "leaves"))
            centroids.append(keys.leaf_record(value).centroid)
        return np.array(ids, np.int64), np.array(centroids, np.float32).reshape(-1, self.meta.dim)

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
            packed["counts"], packed["epochs"], packed["decayed"], packed["value_sum"], packed["last_at"]
        )

    def engagement(self, ordinals: I64, window: int, now_ms: int) -> npt.NDArray[np.float64]:
        """See :class:`IndexReader`."""
        return decayed_counts(self.counters(ordinals), now_ms, self.meta.half_lives_s)[:, window]

    def created_at(self, ordinals: I64) -> I64:
        """See :class:`IndexReader`."""
        values = self._store.get_many("items", keys.ordinal_keys(ordinals))
        times = [0 if value is None else keys.item_record(value, self.meta.facets).created_at for value in values]
        return np.array(times, np.int64)

    def item_ids(self, ordinals: I64) -> list[str]:
        """See :class:`IndexReader`."""
        values = self._store.get_many("items", keys.ordinal_keys(ordinals))
        return ["" if value is None else keys.item_record(value, self.meta.facets).item_id for value in values]
