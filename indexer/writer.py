"""The single writer: every change to a store and its live view goes through here, one atomic write each.

A change is planned from the view, written to RocksDB in one batch, and only then shown in the view. A write that fails
leaves both as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.batch import Applied, EventBatch, ItemRows
from indexer.counters import CounterRows, add_engagements
from indexer.keys import ItemState, LeafRecord, LeafState
from indexer.pending import Expired, Pending, Settled, Waiting, settle
from indexer.routing import Routed, route
from indexer.store import Batch, Store
from indexer.view import FacetView, LiveView
from schemas.config import PendingConfig
from schemas.errors import StoreError
from schemas.store import Totals

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

OTHER_KIND = "other"
ADOPTION = 8
"""A leaf takes further raw indices until it holds this fraction of B_upp, which is twice a derived B_low."""

SetAside = Callable[[list[Expired]], int | None]
"""Makes a batch's dead letters durable, those that waited in vain among them; returns where the dead-letter file ends,
bytes, None where there is no file. Called once in each batch, before it is written."""


@dataclass(frozen=True, slots=True)
class _ItemChange:
    """The outcome of a batch's item events: one row per item that changes.

    Attributes:
        ordinals: (n,) distinct.
        rows: (n,) row of the event that decides, in the batch's ``ItemRows``.
        created_at: (n,) epoch milliseconds.
        new_ids: ids that get the ordinals from ``totals.next_ordinal`` on.
        first_rows: (len(new_ids),) the event that makes each of them known, in the batch's ``ItemRows``.
        stale: events that came too late to matter.
    """

    ordinals: I64
    rows: I64
    created_at: I64
    new_ids: dict[str, int]
    first_rows: list[int]
    stale: int


class IndexWriter:
    """Applies event batches. Use from one thread only.

    Attributes:
        store: open for writing.
        view: kept equal to the store.
        pending: engagements waiting for their item, likewise.
    """

    def __init__(
        self,
        store: Store,
        view: LiveView,
        pending: Pending,
        *,
        max_kinds: int = 32,
        bounds: PendingConfig | None = None,
    ) -> None:
        self.store = store
        self.view = view
        self.pending = pending
        self._max_kinds = max_kinds
        self._bounds = PendingConfig() if bounds is None else bounds

    def apply(self, batch: EventBatch, set_aside: SetAside | None = None) -> Applied:
        """Apply one batch of events, whole or not at all.

        How a stream is cut into batches makes no difference to items, codes, counters and what waits.

        Args:
            batch: decoded and encoded events with the positions they bring the store to.
            set_aside: takes the engagements that waited in vain; None forgets them.

        Raises:
            StoreError: if a position would move back, or the disk refuses; nothing is applied then.
        """
        view = self.view
        for name, position in batch.positions.items():
            if position < view.positions.get(name, 0):
                raise StoreError(f"offset of {name} would move back from {view.positions[name]} to {position}")
        totals = view.totals.model_copy(deep=True)
        write = self.store.batch()

        change = self._resolve(batch.items)
        upserts = self._plan_items(batch.items, change, totals, write)
        target = self._find_items(batch, change)
        settled = self._settle(batch, change, target)
        counted = self._plan_counters(batch, target, settled, change, totals, write)
        released = [row for _, row in settled.released]
        gone = [row for row in released + [entry.waiting for entry in settled.expired] if row in self.pending]

        write.put_many("pending", [row.key for row in settled.held], [row.record for row in settled.held])
        write.delete_many("pending", [row.key for row in gone])

        totals.next_ordinal += len(change.new_ids)
        totals.items_stale += change.stale
        applied_engagements = int(np.count_nonzero(target >= 0)) + len(released)
        totals.engagements_applied += applied_engagements
        totals.dead_letters += batch.dead_letters + len(settled.expired)
        totals.stream_time_ms = int(batch.stream_times(totals.stream_time_ms)[-1])
        for name, clock in batch.clocks.items():
            totals.clocks[name] = max(clock, totals.clocks.get(name, 0))
        if set_aside is not None:
            totals.dead_letter_position = set_aside(settled.expired)
        write.totals(totals)
        for name, position in batch.positions.items():
            write.offset(name, position)
        self.store.write(write)

        with view.lock:
            upserts.show(view)
            for item_id, ordinal in change.new_ids.items():
                view.ids.append(item_id)
                view.by_id[item_id] = ordinal
            if counted is not None:
                view.set_counters(*counted)
            view.totals = totals
            view.positions.update(batch.positions)
        self.pending.remove(gone)
        for row in settled.held:
            self.pending.add(row)
        deletes = int((batch.items.encoded[change.rows] < 0).sum())
        return Applied(
            len(change.rows) - deletes,
            deletes,
            change.stale,
            applied_engagements,
            len(settled.held),
            len(settled.expired),
        )

    # -- items ---------------------------------------------------------------------------------------------------

    def _resolve(self, items: ItemRows) -> _ItemChange:
        """Decide which event wins for each item: the later occurred_at, then the later offset (contracts)."""
        view = self.view
        new_ids: dict[str, int] = {}
        first_rows: list[int] = []
        ordinals = view.ordinals_of(items.item_ids)
        base = view.totals.next_ordinal
        for row in np.flatnonzero(ordinals < 0).tolist():
            ordinals[row] = new_ids.setdefault(items.item_ids[row], base + len(new_ids))
            if len(first_rows) < len(new_ids):
                first_rows.append(row)

        known = ordinals < base
        at = np.where(known, ordinals, 0)
        have = view.items
        empty = not len(have)
        state = np.zeros(len(items), np.uint8) if empty else np.where(known, have["state"][at], 0)
        seen_at = np.zeros(len(items), np.int64) if empty else np.where(known, have["occurred_at"][at], 0)
        created = np.zeros(len(items), np.int64) if empty else np.where(known, have["created_at"][at], 0)

        late = (state != ItemState.ABSENT) & (items.occurred_at < seen_at)
        created_at = np.where((state == ItemState.LIVE) & (items.encoded >= 0), created, items.occurred_at)
        _, first, count = np.unique(ordinals, return_index=True, return_counts=True)
        if not len(count) or count.max() == 1:
            rows = np.flatnonzero(~late)
            return _ItemChange(ordinals[rows], rows, created_at[rows], new_ids, first_rows, int(late.sum()))

        # Several events of one item in one batch: walk them in order, as if each had come alone.
        single = np.zeros(len(items), np.bool_)
        single[first[count == 1]] = True
        winner: dict[int, tuple[int, int]] = {}
        alive: dict[int, tuple[bool, int, int]] = {}
        stale = int((late & single).sum())
        for row in np.flatnonzero(~single).tolist():
            ordinal, when = int(ordinals[row]), int(items.occurred_at[row])
            before = (
                bool(state[row]),
                int(seen_at[row]),
                int(created[row]) if state[row] == ItemState.LIVE else -1,
            )
            exists, latest, born = alive.get(ordinal, before)
            if exists and when < latest:
                stale += 1
                continue
            born = -1 if items.encoded[row] < 0 else (born if born >= 0 else when)
            alive[ordinal] = (True, when, born)
            winner[ordinal] = (row, born if born >= 0 else when)
        rows = np.flatnonzero(single & ~late)
        return _ItemChange(
            np.concatenate([ordinals[rows], np.array(list(winner), np.int64)]),
            np.concatenate([rows, np.array([row for row, _ in winner.values()], np.int64)]),
            np.concatenate([created_at[rows], np.array([born for _, born in winner.values()], np.int64)]),
            new_ids,
            first_rows,
            stale,
        )

    def _plan_items(self, items: ItemRows, change: _ItemChange, totals: Totals, write: Batch) -> _ItemPlan:
        view, ordinals, rows = self.view, change.ordinals, change.rows
        facets = view.meta.facets
        encoded = items.encoded[rows]
        live = encoded >= 0
        known = ordinals < view.totals.next_ordinal
        was_live = np.zeros(len(ordinals), np.bool_)
        was_deleted = np.zeros(len(ordinals), np.bool_)
        old_leaf = np.zeros((len(ordinals), facets), np.int64)
        raw = np.zeros((len(ordinals), facets), np.uint32)
        old_raw = np.zeros((len(ordinals), facets), np.uint32)
        if known.any():
            at = ordinals[known]
            was_live[known] = view.items["state"][at] == ItemState.LIVE
            was_deleted[known] = view.items["state"][at] == ItemState.DELETED
            old_leaf[known] = view.items["leaf"][at]
            old_raw[known] = view.items["raw"][at]
        raw[live] = items.raw[encoded[live]]

        plan = _ItemPlan(facets)
        leaf = np.zeros((len(ordinals), facets), np.uint32)
        for facet in range(facets):
            stays = live & was_live & (raw[:, facet] == old_raw[:, facet])
            leaf[stays, facet] = old_leaf[stays, facet]
            enters = np.flatnonzero(live & ~stays)
            leaves = was_live & ~stays
            vectors = items.vectors[encoded[enters], facet]
            first_new = totals.next_leaf[facet]
            room = max(1, totals.bounds[1] // ADOPTION)
            routed = route(view.facets[facet], raw[enters, facet], vectors, first_new, room)
            totals.next_leaf[facet] += routed.opened
            leaf[enters, facet] = routed.leaves
            plan.add_facet(
                facet,
                write,
                view,
                out=(old_leaf[leaves, facet], ordinals[leaves]),
                into=(routed.leaves, ordinals[enters]),
                opened=_Opened.of(view.facets[facet], routed, first_new),
            )

        sources = _index_names(totals.sources, items.sources)[rows]
        state = np.where(live, ItemState.LIVE, ItemState.DELETED).astype(np.uint8)
        plan.columns = {
            "state": state,
            "source": sources,
            "created_at": change.created_at,
            "occurred_at": items.occurred_at[rows],
            "offset": items.offsets[rows],
            "raw": raw,
            "leaf": leaf,
        }
        plan.ordinals, plan.live, plan.vectors = ordinals, live, items.vectors[encoded[live]]
        item_ids = [items.item_ids[row] for row in rows.tolist()]
        keys_of = keys.ordinal_keys(ordinals)
        write.put_many(
            "items",
            keys_of,
            keys.item_values(
                state,
                sources,
                change.created_at,
                items.occurred_at[rows],
                items.offsets[rows],
                raw,
                leaf,
                item_ids,
            ),
        )
        new = list(change.new_ids)
        write.put_many(
            "ids",
            [item_id.encode() for item_id in new],
            keys.ordinal_keys(np.fromiter(change.new_ids.values(), np.int64)),
        )
        live_keys = [key for key, is_live in zip(keys_of, live.tolist(), strict=True) if is_live]
        vector_bytes = plan.vectors.tobytes()
        width = len(vector_bytes) // max(1, len(live_keys))
        write.put_many(
            "vectors",
            live_keys,
            [vector_bytes[at * width : (at + 1) * width] for at in range(len(live_keys))],
        )
        write.put_many("content", live_keys, [items.content[at] for at in encoded[live].tolist()])
        gone = [key for key, is_live in zip(keys_of, live.tolist(), strict=True) if not is_live]
        write.delete_many("vectors", gone)
        write.delete_many("content", gone)
        totals.items_live += int(live.sum()) - int(was_live.sum())
        totals.items_deleted += int((~live).sum()) - int(was_deleted.sum())
        return plan

    # -- engagements ---------------------------------------------------------------------------------------------

    def _find_items(self, batch: EventBatch, change: _ItemChange) -> I64:
        """(m,) ordinal of each engagement's item, -1 where the item is not there yet when the engagement comes."""
        rows = batch.engagements
        ordinals = self.view.ordinals_of(rows.item_ids)
        unknown = np.flatnonzero(ordinals < 0)
        if not len(unknown) or not change.new_ids:
            return ordinals
        base = self.view.totals.next_ordinal
        known_from = batch.item_order()[change.first_rows]
        created = np.fromiter((change.new_ids.get(rows.item_ids[row], -1) for row in unknown.tolist()), np.int64)
        there = created >= 0
        there[there] = known_from[created[there] - base] < batch.engagement_order()[unknown[there]]
        ordinals[unknown[there]] = created[there]
        return ordinals

    def _settle(self, batch: EventBatch, change: _ItemChange, target: I64) -> Settled:
        """What becomes of those that wait, and of this batch's engagements whose item is not there when they come."""
        rows, waits = batch.engagements, np.flatnonzero(target < 0).tolist()
        if not waits and not len(self.pending):
            return Settled([], [], [])
        places = batch.engagement_order()
        arrivals = [
            (
                int(places[row]),
                Waiting(
                    rows.item_ids[row],
                    rows.sources[row],
                    int(rows.offsets[row]),
                    rows.kinds[row],
                    int(rows.occurred_at[row]),
                    float(rows.values[row]),
                    rows.records[row],
                ),
            )
            for row in waits
        ]
        created = dict(zip(change.new_ids, batch.item_order()[change.first_rows].tolist(), strict=True))
        times = batch.stream_times(self.view.totals.stream_time_ms)
        return settle(self.pending, arrivals, created, times, self._bounds)

    def _plan_counters(
        self,
        batch: EventBatch,
        found: I64,
        settled: Settled,
        change: _ItemChange,
        totals: Totals,
        write: Batch,
    ) -> tuple[I64, CounterRows] | None:
        """Counters of the touched items after this batch.

        Engagements count in the order in which they are applied, whether they waited or not, so that sums and the
        order of kinds come out the same whatever the batches.
        """
        view, rows, released = self.view, batch.engagements, [row for _, row in settled.released]
        keep = np.flatnonzero(found >= 0)
        if not len(keep) and not released:
            return None
        early = np.array([change.new_ids[row.item_id] for row in released], np.int64)
        target = np.concatenate([early, found[keep]])
        kind_names = [row.kind for row in released] + [rows.kinds[at] for at in keep.tolist()]
        times = np.concatenate([np.array([row.occurred_at for row in released], np.int64), rows.occurred_at[keep]])
        values = np.concatenate([np.array([row.value for row in released]), rows.values[keep]])
        if released:
            moments = np.concatenate(
                [np.array([at for at, _ in settled.released], np.int64), batch.engagement_order()[keep]]
            )
            applied = np.argsort(moments, kind="stable")
            target, times, values = target[applied], times[applied], values[applied]
            kind_names = [kind_names[at] for at in applied.tolist()]
        kinds = _index_names(totals.kinds, kind_names, limit=self._max_kinds).astype(np.int64)

        touched, row_of = np.unique(target, return_inverse=True)
        before = self._counters_of(touched, len(totals.kinds))
        half_lives = view.meta.half_lives_s
        after = add_engagements(before, row_of, kinds, times, values, half_lives)
        packed = np.empty(len(touched), keys.stats_dtype(len(half_lives), len(totals.kinds)))
        packed["counts"], packed["epochs"], packed["decayed"] = after.counts, after.epochs, after.decayed
        packed["value_sum"], packed["last_at"] = after.value_sum, after.last_at
        joined, width = packed.tobytes(), packed.dtype.itemsize
        write.put_many(
            "stats",
            keys.ordinal_keys(touched),
            [joined[at : at + width] for at in range(0, len(joined), width)],
        )
        return touched, after

    def _counters_of(self, ordinals: I64, kinds: int) -> CounterRows:
        """Counters of n ordinals, zero for those not yet shown, wide enough for all kinds."""
        view = self.view
        windows = len(view.meta.half_lives_s)
        out = CounterRows(
            np.zeros((len(ordinals), kinds), np.uint32),
            np.zeros((len(ordinals), windows), np.int32),
            np.zeros((len(ordinals), windows)),
            np.zeros(len(ordinals)),
            np.zeros(len(ordinals), np.int64),
        )
        known = np.flatnonzero(ordinals < len(view.items))
        have = view.counters(ordinals[known])
        out.counts[known, : have.counts.shape[1]] = have.counts
        out.epochs[known], out.decayed[known] = have.epochs, have.decayed
        out.value_sum[known], out.last_at[known] = have.value_sum, have.last_at
        return out


@dataclass(frozen=True, slots=True)
class _Opened:
    """Routes of raw indices met for the first time.

    Attributes:
        raws, hosts: (m,) raw indices and the leaves they lead to.
        leaves: (k,) those of the leaves that are new.
        centroids: (k, d) float32, the mean of what their raw indices stand for.
    """

    raws: I64
    hosts: I64
    leaves: I64
    centroids: npt.NDArray[np.float32]

    @classmethod
    def of(cls, facet: FacetView, routed: Routed, first_new: int) -> _Opened:
        leaves = first_new + np.arange(routed.opened)
        new = routed.hosts >= first_new
        at = routed.hosts[new] - first_new
        sums = np.zeros((routed.opened, facet.codewords.shape[2]), np.float32)
        np.add.at(sums, at, facet.reconstruct(routed.new_raws[new]))
        counts = np.bincount(at, minlength=routed.opened).astype(np.float32)
        return cls(routed.new_raws, routed.hosts, leaves, sums / counts[:, None])


class _ItemPlan:
    """Postings, leaves and item columns to show in the view once they are written."""

    def __init__(self, facets: int) -> None:
        self.ordinals: I64 = np.empty(0, np.int64)
        self.live: npt.NDArray[np.bool_] = np.empty(0, np.bool_)
        self.vectors: npt.NDArray[np.float16] = np.empty((0, 0, 0), np.float16)
        self.columns: dict[str, npt.NDArray[np.integer]] = {}
        self._out: list[tuple[I64, I64]] = [(np.empty(0, np.int64), np.empty(0, np.int64))] * facets
        self._into = list(self._out)
        self._opened: list[_Opened | None] = [None] * facets

    def add_facet(
        self,
        facet: int,
        write: Batch,
        view: LiveView,
        *,
        out: tuple[I64, I64],
        into: tuple[I64, I64],
        opened: _Opened,
    ) -> None:
        """Plan one facet: postings that go, postings that come, and routes that open."""
        self._out[facet], self._into[facet], self._opened[facet] = out, into, opened
        write.delete_many("postings", keys.posting_keys(facet, *out))
        order = np.lexsort((into[1], into[0]))  # in key order RocksDB's memtable takes them a third faster
        write.put_empty("postings", keys.posting_keys(facet, into[0][order], into[1][order]))
        for leaf, centroid in zip(opened.leaves.tolist(), opened.centroids, strict=True):
            record = LeafRecord(LeafState.NORMAL, 0, 0, centroid)
            write.put("leaves", keys.FACET_U32.pack(facet, leaf), keys.leaf_value(record))
        targets = opened.hosts.astype("<u4").tobytes()
        route_keys = [keys.FACET_U32.pack(facet, raw) for raw in opened.raws.tolist()]
        write.put_many("routes", route_keys, [targets[at : at + 4] for at in range(0, len(targets), 4)])
        sizes = view.facets[facet].sizes()
        change = (np.concatenate([into[0], out[0]]), np.repeat([1, -1], [len(into[0]), len(out[0])]))
        put_sizes(write, facet, sizes, *change)

    def show(self, view: LiveView) -> None:
        """Make the view equal to what was written."""
        if not len(self.ordinals):
            return
        items = view.items
        items.resize(max(len(items), int(self.ordinals.max()) + 1))
        for name, column in self.columns.items():
            items[name][self.ordinals] = column
        items["vector"][self.ordinals[self.live]] = self.vectors
        items["vector"][self.ordinals[~self.live]] = 0
        for facet, f in enumerate(view.facets):
            opened = self._opened[facet]
            if opened is not None and len(opened.raws):
                f.ensure_leaves(int(opened.leaves.max(initial=-1)) + 1)
                f.leaves["alive"][opened.leaves] = True
                f.leaves["centroid"][opened.leaves] = opened.centroids
                f.routes.append(opened.raws, opened.hosts.astype(np.uint32))
                f.raws.append(opened.hosts, opened.raws.astype(np.uint32))
            out_leaf, out_ordinal = self._out[facet]
            f.members.remove(out_leaf, out_ordinal.astype(np.uint32))
            into_leaf, into_ordinal = self._into[facet]
            f.members.append(into_leaf, into_ordinal.astype(np.uint32))


def put_sizes(write: Batch, facet: int, sizes: I64, leaves: I64, change: npt.NDArray[np.integer]) -> None:
    """Write the size pages that a change touches. ``leaves`` and ``change`` are (n,), leaves may repeat."""
    if not len(leaves):
        return
    pages = np.unique(leaves // keys.PAGE)
    room = np.zeros((int(pages.max()) + 1) * keys.PAGE, np.int64)
    have = min(len(room), len(sizes))
    room[:have] = sizes[:have]
    np.add.at(room, leaves, change)
    for page in pages.tolist():
        values = room[page * keys.PAGE : (page + 1) * keys.PAGE].astype("<u4").tobytes()
        write.put("sizes", keys.FACET_U32.pack(facet, page), values)


def _index_names(known: list[str], names: Sequence[str], limit: int = 65_535) -> npt.NDArray[np.uint16]:
    """(n,) position of each name in ``known``, which grows; beyond ``limit`` names fall to the last, ``other``."""
    at = {name: position for position, name in enumerate(known)}
    out = np.empty(len(names), np.uint16)
    for row, name in enumerate(names):
        position = at.get(name)
        if position is None:
            label = name if len(known) < limit - 1 or name == OTHER_KIND else OTHER_KIND
            position = at.setdefault(label, len(known))
            if position == len(known):
                known.append(label)
            at[name] = position
        out[row] = position
    return out
