"""The single writer: every change to a store and its live view goes through here, one atomic write each.

A change is planned from the view, written to RocksDB in one batch, and only then shown in the view. A write that fails
leaves both as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.batch import Applied, EngagementRows, EventBatch, ItemRows
from indexer.counters import CounterRows, add_engagements
from indexer.keys import ItemState, LeafRecord, LeafState
from indexer.pending import Expired, Pending, Waiting
from indexer.routing import route
from indexer.store import Batch, Store
from indexer.view import LiveView
from schemas.errors import StoreError
from schemas.store import Totals

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

OTHER_KIND = "other"


@dataclass(frozen=True, slots=True)
class _ItemChange:
    """The outcome of a batch's item events: one row per item that changes.

    Attributes:
        ordinals: (n,) distinct.
        rows: (n,) row of the event that decides, in the batch's ``ItemRows``.
        created_at: (n,) epoch milliseconds.
        new_ids: ids that get the ordinals from ``totals.next_ordinal`` on.
        stale: events that came too late to matter.
    """

    ordinals: I64
    rows: I64
    created_at: I64
    new_ids: dict[str, int]
    stale: int


class IndexWriter:
    """Applies event batches. Use from one thread only.

    Attributes:
        store: open for writing.
        view: kept equal to the store.
        pending: engagements waiting for their item, likewise.
    """

    def __init__(self, store: Store, view: LiveView, pending: Pending, *, max_kinds: int = 32) -> None:
        self.store = store
        self.view = view
        self.pending = pending
        self._max_kinds = max_kinds

    def apply(
        self, batch: EventBatch, expired: Sequence[Expired] = (), dead_letter_position: int | None = None
    ) -> Applied:
        """Apply one batch of events, whole or not at all.

        Args:
            batch: decoded and encoded events with the positions they bring the store to.
            expired: waiting engagements that were set aside as dead letters.
            dead_letter_position: where the dead-letter file ends now, bytes.

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
        waiting_gone = [entry.waiting for entry in expired]
        released, held = self._split_engagements(batch.engagements, change, waiting_gone)
        counted = self._plan_counters(batch.engagements, held, released, change, totals, write)

        for row in held:
            write.put("pending", keys.pending_key(row.item_id, row.source, row.offset), row.record)
        gone = waiting_gone + released
        write.delete_many("pending", [keys.pending_key(row.item_id, row.source, row.offset) for row in gone])

        applied_engagements = len(batch.engagements) - len(held) + len(released)
        totals.next_ordinal += len(change.new_ids)
        totals.items_stale += change.stale
        totals.engagements_applied += applied_engagements
        totals.dead_letters += batch.dead_letters + len(expired)
        totals.dead_letter_position = dead_letter_position
        times = np.concatenate([batch.items.occurred_at, batch.engagements.occurred_at])
        if len(times):
            totals.stream_time_ms = max(totals.stream_time_ms, int(times.max()))
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
        for row in held:
            self.pending.add(row)
        deletes = int((batch.items.encoded[change.rows] < 0).sum())
        return Applied(len(change.rows) - deletes, deletes, change.stale, applied_engagements, len(held))

    # -- items ---------------------------------------------------------------------------------------------------

    def _resolve(self, items: ItemRows) -> _ItemChange:
        """Decide which event wins for each item: the later occurred_at, then the later offset (contracts)."""
        view = self.view
        new_ids: dict[str, int] = {}
        ordinals = view.ordinals_of(items.item_ids)
        base = view.totals.next_ordinal
        for row in np.flatnonzero(ordinals < 0).tolist():
            ordinals[row] = new_ids.setdefault(items.item_ids[row], base + len(new_ids))

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
            return _ItemChange(ordinals[rows], rows, created_at[rows], new_ids, int(late.sum()))

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
            routed = route(view.facets[facet], raw[enters, facet], vectors, totals.next_leaf[facet])
            totals.next_leaf[facet] += len(routed.new_leaves)
            leaf[enters, facet] = routed.leaves
            plan.add_facet(
                facet,
                write,
                view,
                out=(old_leaf[leaves, facet], ordinals[leaves]),
                into=(routed.leaves, ordinals[enters]),
                opened=(routed.new_raws, routed.new_leaves),
            )

        sources = _index_names(totals.sources, [items.sources[row] for row in rows.tolist()])
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

    def _split_engagements(
        self, rows: EngagementRows, change: _ItemChange, expired: list[Waiting]
    ) -> tuple[list[Waiting], list[Waiting]]:
        """(waiting ones whose item is now there, new ones whose item is not)."""
        gone = {(row.source, row.offset) for row in expired}
        released: list[Waiting] = []
        if len(self.pending):
            for item_id in change.new_ids:
                released += [row for row in self.pending.of_item(item_id) if (row.source, row.offset) not in gone]
        by_id, new_ids = self.view.by_id, change.new_ids
        held = [
            Waiting(
                item_id,
                rows.sources[at],
                int(rows.offsets[at]),
                rows.kinds[at],
                int(rows.occurred_at[at]),
                float(rows.values[at]),
                rows.records[at],
            )
            for at, item_id in enumerate(rows.item_ids)
            if item_id not in by_id and item_id not in new_ids
        ]
        return released, held

    def _plan_counters(
        self,
        rows: EngagementRows,
        held: list[Waiting],
        released: list[Waiting],
        change: _ItemChange,
        totals: Totals,
        write: Batch,
    ) -> tuple[I64, CounterRows] | None:
        """Counters of the touched items after this batch. What waited comes first: it was read first."""
        view = self.view
        ordinals = view.ordinals_of(rows.item_ids)
        unknown = np.flatnonzero(ordinals < 0)
        ordinals[unknown] = [change.new_ids.get(rows.item_ids[at], -1) for at in unknown.tolist()]
        keep = np.flatnonzero(ordinals >= 0)
        assert len(rows) - len(keep) == len(held)
        if not len(keep) and not released:
            return None
        early = np.array([change.new_ids[row.item_id] for row in released], np.int64)
        target = np.concatenate([early, ordinals[keep]])
        kind_names = [row.kind for row in released] + [rows.kinds[at] for at in keep.tolist()]
        kinds = _index_names(totals.kinds, kind_names, limit=self._max_kinds).astype(np.int64)
        times = np.concatenate([np.array([row.occurred_at for row in released], np.int64), rows.occurred_at[keep]])
        values = np.concatenate([np.array([row.value for row in released]), rows.values[keep]])

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


class _ItemPlan:
    """Postings, leaves and item columns to show in the view once they are written."""

    def __init__(self, facets: int) -> None:
        self.ordinals: I64 = np.empty(0, np.int64)
        self.live: npt.NDArray[np.bool_] = np.empty(0, np.bool_)
        self.vectors: npt.NDArray[np.float16] = np.empty((0, 0, 0), np.float16)
        self.columns: dict[str, npt.NDArray[np.integer]] = {}
        self._out: list[tuple[I64, I64]] = [(np.empty(0, np.int64), np.empty(0, np.int64))] * facets
        self._into = list(self._out)
        self._opened = list(self._out)

    def add_facet(
        self,
        facet: int,
        write: Batch,
        view: LiveView,
        *,
        out: tuple[I64, I64],
        into: tuple[I64, I64],
        opened: tuple[I64, I64],
    ) -> None:
        """Plan one facet: postings that go, postings that come, and (raw, leaf) pairs that open."""
        self._out[facet], self._into[facet], self._opened[facet] = out, into, opened
        write.delete_many("postings", keys.posting_keys(facet, *out))
        write.put_empty("postings", keys.posting_keys(facet, *into))
        raws, leaves = opened
        for raw, leaf, centroid in zip(
            raws.tolist(), leaves.tolist(), view.facets[facet].reconstruct(raws), strict=True
        ):
            record = LeafRecord(LeafState.NORMAL, 0, 0, centroid)
            write.put("leaves", keys.FACET_U32.pack(facet, leaf), keys.leaf_value(record))
            write.put("routes", keys.FACET_U32.pack(facet, raw), np.array([leaf], "<u4").tobytes())
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
        for facet, f in enumerate(view.facets):
            raws, leaves = self._opened[facet]
            if len(leaves):
                f.ensure_leaves(int(leaves.max()) + 1)
                f.leaves["alive"][leaves] = True
                f.leaves["centroid"][leaves] = f.reconstruct(raws)
                f.routes.append(raws, leaves.astype(np.uint32))
                f.raws.append(leaves, raws.astype(np.uint32))
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


def _index_names(known: list[str], names: list[str], limit: int = 65_535) -> npt.NDArray[np.uint16]:
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
