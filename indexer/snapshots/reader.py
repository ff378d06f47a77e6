"""One full snapshot with the changes since: answers as the live view does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.counters import CounterRows, decayed_counts
from indexer.ragged import RaggedPool
from indexer.retrieval.readers import Located
from indexer.snapshots.delta import Segment
from indexer.snapshots.filing import Routes
from indexer.snapshots.full import Stored, hash_ids
from indexer.view import Rows
from schemas.snapshot import SnapshotInfo

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class SnapshotReader:
    """An :class:`indexer.retrieval.readers.IndexReader` of one full snapshot and a delta of it. Safe from any thread.

    It never turns to another full snapshot, so ordinals mean the same as long as it lives.

    Args:
        info: manifest of the full snapshot.
        stored: its arrays, see :mod:`indexer.snapshots.full`.

    Attributes:
        meta: what the index was made for.
        stored: as given.
        info: manifest of the full snapshot.
        at: manifest of what is shown: the full snapshot's, or that of the delta that was applied last.
    """

    def __init__(self, info: SnapshotInfo, stored: Stored) -> None:
        self.meta = info.store
        self.info = info
        self.at = info
        self.stored = stored
        self._routes = [
            Routes(
                stored[f"f{facet}.leaves"],
                stored[f"f{facet}.centroids"],
                stored[f"f{facet}.raws"],
                stored[f"f{facet}.route_offsets"],
                stored[f"f{facet}.route_leaves"],
            )
            for facet in range(info.store.facets)
        ]
        self._lock = threading.RLock()
        self._known = len(stored["live"])
        self._items = Rows(
            live=(np.bool_, ()),
            created_at=(np.int64, ()),
            leaf=(np.int64, (info.store.facets,)),
            vector=(np.float16, (info.store.facets, info.store.dim)),
        )
        windows = len(info.store.half_lives_s)
        self._counters = Rows(epochs=(np.int32, (windows,)), decayed=(np.float64, (windows,)), last_at=(np.int64, ()))
        # Ordinal -> row in the arrays above, -1 where the full snapshot tells.
        self._item_row = np.full(self._known, -1, np.int32)
        self._counter_row = np.full(self._known, -1, np.int32)
        self._new_ids: dict[str, int] = {}
        self._id_of: dict[int, str] = {}
        self._added = [RaggedPool() for _ in range(info.store.facets)]
        self._new_leaves: list[dict[int, F32]] = [{} for _ in range(info.store.facets)]
        self._all_leaves = True
        self._centroids: list[tuple[I64, F32] | None] = [None] * info.store.facets

    # -- following -------------------------------------------------------------------------------------------------

    def advance(self, info: SnapshotInfo, segments: Sequence[Segment]) -> None:
        """Show a later delta.

        Args:
            info: its manifest, of this full snapshot.
            segments: those of its segments that were not applied yet, in order.
        """
        assert (info.kind, info.full, info.store) == ("delta", self.info.full, self.meta), "a delta of another snapshot"
        with self._lock:
            self._item_row = _grown(self._item_row, info.ordinals)
            self._counter_row = _grown(self._counter_row, info.ordinals)
            for segment in segments:
                self._apply(segment)
            self.at = info

    def _apply(self, segment: Segment) -> None:
        ordinals = segment.ordinals
        items = self._items
        at, fresh = _give_rows(self._item_row, ordinals, items)
        leaf = segment.leaf.astype(np.int64)
        base = np.minimum(ordinals, max(0, self._known - 1))
        in_full = (ordinals < self._known) & (self.stored["live"][base] if self._known else False)
        for facet, routes in enumerate(self._routes):
            present = np.full(len(ordinals), -1, np.int64)
            present[in_full] = self.stored["leaf"][base[in_full], facet]
            leaf[:, facet] = routes.file(
                segment.raw[:, facet].astype(np.int64), leaf[:, facet], present, segment.vectors[:, facet]
            )
            pool = self._added[facet]
            before, was, now = items["leaf"][at, facet], ~fresh & items["live"][at], segment.live
            stays = was & now & (before == leaf[:, facet])
            out, into = was & ~stays, now & ~stays
            pool.remove(before[out], ordinals[out].astype(np.uint32))
            pool.ensure_rows(int(leaf[into, facet].max(initial=-1)) + 1)
            pool.append(leaf[into, facet], ordinals[into].astype(np.uint32))
        items["live"][at] = segment.live
        items["created_at"][at] = segment.created_at
        items["leaf"][at] = leaf
        items["vector"][at] = segment.vectors
        for ordinal, item_id in zip(ordinals.tolist(), segment.item_ids, strict=True):
            if ordinal >= self._known:
                self._new_ids[item_id] = ordinal
                self._id_of[ordinal] = item_id

        at, _ = _give_rows(self._counter_row, segment.counted, self._counters)
        for name in ("epochs", "decayed", "last_at"):
            self._counters[name][at] = getattr(segment, name)
        self._all_leaves = bool(segment.all_leaves[0])
        self._centroids = [None] * self.meta.facets
        for facet, leaf_id, centroid in zip(
            segment.leaf_facets.tolist(), segment.leaf_ids.tolist(), segment.centroids, strict=True
        ):
            self._new_leaves[facet][leaf_id] = centroid

    # -- reading ---------------------------------------------------------------------------------------------------

    def frozen(self) -> AbstractContextManager[object]:
        """See :class:`indexer.retrieval.readers.IndexReader`, here and below; no delta is applied meanwhile."""
        return self._lock

    def locate(self, item_ids: Sequence[str]) -> Located:
        """Find items by id."""
        with self._lock:
            ordinals = self._ordinals_of(item_ids)
            live = ordinals >= 0
            live[live] = self._pick(ordinals[live], "live")
            found = ordinals[live]
            missing = [item_id for item_id, there in zip(item_ids, live.tolist(), strict=True) if not there]
            leaves = self._pick(found, "leaf")
            columns = [self.vectors(facet, found) for facet in range(self.meta.facets)]
            return Located(found, leaves, np.stack(columns, 1), missing)

    def members(self, facet: int, leaf: int, limit: int) -> I64:
        """The newest ``limit`` members of a posting list, ascending."""
        routes, stored = self._routes[facet], self.stored
        slot = int(np.searchsorted(routes.leaves, leaf))
        found = np.empty(0, np.int64)
        if slot < len(routes.leaves) and routes.leaves[slot] == leaf:
            offsets = stored[f"f{facet}.offsets"]
            found = stored[f"f{facet}.members"][offsets[slot] : offsets[slot + 1]].astype(np.int64)
        with self._lock:
            found = found[self._item_row[found] < 0]
            if leaf < len(self._added[facet].lengths):
                found = np.concatenate([found, self._added[facet].row(leaf).astype(np.int64)])
        return np.sort(found)[-limit:]

    def vectors(self, facet: int, ordinals: I64) -> F32:
        """(n, d) facet embeddings."""
        out = np.zeros((len(ordinals), self.meta.dim), np.float32)
        with self._lock:
            rows, stored = self._rows(self._item_row, ordinals)
            later = rows >= 0
            out[later] = self._items["vector"][rows[later], facet]
        at = ordinals[stored]
        there = self.stored["live"][at]
        positions = self.stored["position"][at[there], facet]
        out[np.flatnonzero(stored)[there]] = self.stored[f"f{facet}.vectors"][positions]
        return out

    def centroids(self, facet: int) -> tuple[I64, F32]:
        """Leaves (m,) and their centroids (m, d)."""
        with self._lock:
            found = self._centroids[facet]
            if found is None:
                found = self._centroids[facet] = self._leaves_now(facet)
            return found

    def _leaves_now(self, facet: int) -> tuple[I64, F32]:
        routes, sizes = self._routes[facet], self._added[facet].lengths
        new = [
            (leaf, centroid)
            for leaf, centroid in sorted(self._new_leaves[facet].items())
            if self._all_leaves or (leaf < len(sizes) and sizes[leaf])
        ]
        if not new:
            return routes.leaves, routes.centroids
        ids = np.concatenate([routes.leaves, np.array([leaf for leaf, _ in new], np.int64)])
        return ids, np.concatenate([routes.centroids, np.stack([centroid for _, centroid in new])])

    def engagement(self, ordinals: I64, window: int, now_ms: int) -> npt.NDArray[np.float64]:
        """(n,) decayed engagement counts of one window."""
        n, windows = len(ordinals), len(self.meta.half_lives_s)
        nothing = np.zeros((n, 0), np.uint32)
        out = CounterRows(
            nothing, np.zeros((n, windows), np.int32), np.zeros((n, windows)), np.zeros(n), np.zeros(n, np.int64)
        )
        with self._lock:
            rows, stored = self._rows(self._counter_row, ordinals)
            later = rows >= 0
            for name in ("epochs", "decayed", "last_at"):
                column = getattr(out, name)
                column[later] = self._counters[name][rows[later]]
                column[stored] = self.stored[name][ordinals[stored]]
        return decayed_counts(out, now_ms, self.meta.half_lives_s)[:, window]

    def created_at(self, ordinals: I64) -> I64:
        """(n,) epoch milliseconds."""
        with self._lock:
            return self._pick(ordinals, "created_at")

    def item_ids(self, ordinals: I64) -> list[str]:
        """(n,) item ids."""
        with self._lock:
            return [self._id(ordinal) for ordinal in ordinals.tolist()]

    def _rows(self, table: npt.NDArray[np.int32], ordinals: I64) -> tuple[I64, npt.NDArray[np.bool_]]:
        """(n,) row of each ordinal in the later arrays, -1 where there is none, and whether the full snapshot tells."""
        rows = table[ordinals].astype(np.int64)
        return rows, (rows < 0) & (ordinals < self._known)

    def _pick(self, ordinals: I64, name: str) -> npt.NDArray[Any]:
        """A column of some items, from whichever knows them."""
        stored = self.stored[name]
        rows, in_full = self._rows(self._item_row, ordinals)
        out = np.zeros((len(ordinals), *stored.shape[1:]), self._items[name].dtype)
        out[rows >= 0] = self._items[name][rows[rows >= 0]]
        out[in_full] = stored[ordinals[in_full]]
        return out

    def _id(self, ordinal: int) -> str:
        if ordinal >= self._known:
            return self._id_of[ordinal]
        start, end = self.stored["id_offsets"][ordinal : ordinal + 2].tolist()
        return self.stored["id_bytes"][start:end].tobytes().decode()

    def _ordinals_of(self, item_ids: Sequence[str]) -> I64:
        """(n,) ordinals, -1 where an id is not known."""
        encoded = [item_id.encode() for item_id in item_ids]
        hashes = self.stored["id_hashes"]
        wanted = hash_ids(encoded)
        first, last = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        out = np.full(len(item_ids), -1, np.int64)
        for row, item_id in enumerate(item_ids):
            out[row] = self._new_ids.get(item_id, -1)
            for ordinal in self.stored["id_order"][first[row] : last[row]].tolist():
                if self._id(ordinal) == item_id:
                    out[row] = ordinal
        return out


def _grown(table: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    """With room for ordinals below ``size``."""
    if size <= len(table):
        return table
    out = np.full(max(size, len(table) + len(table) // 8), -1, np.int32)
    out[: len(table)] = table
    return out


def _give_rows(table: npt.NDArray[np.int32], ordinals: I64, rows: Rows) -> tuple[I64, npt.NDArray[np.bool_]]:
    """(n,) row of each ordinal, all distinct, and which of the rows are new."""
    at = table[ordinals].astype(np.int64)
    fresh = at < 0
    count = int(np.count_nonzero(fresh))
    at[fresh] = len(rows) + np.arange(count)
    table[ordinals] = at
    rows.resize(len(rows) + count)
    return at, fresh
