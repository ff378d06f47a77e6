"""What a batch's item events come to: which of them decides, and what that changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.batch import ItemRows
from indexer.keys import ItemState
from indexer.labels import Labels
from indexer.labels import encode as encode_labels
from indexer.names import index_names
from indexer.postings import ItemPlan, Opened
from indexer.routing import route
from indexer.view import LiveView
from indexer.write_batch import Batch
from schemas.store import Totals

I64 = npt.NDArray[np.int64]

ADOPTION = 8
"""A leaf takes further raw indices until it holds this fraction of B_upp, which is twice a derived B_low."""


@dataclass(frozen=True, slots=True)
class ItemChange:
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


def resolve(view: LiveView, items: ItemRows) -> ItemChange:
    """Decide which event wins for each item: the later occurred_at, then the later offset (contracts)."""
    first_rows: list[int] = []
    ordinals = view.ordinals_of(items.item_ids)
    base = view.totals.next_ordinal
    unknown = np.flatnonzero(ordinals < 0)
    names = [items.item_ids[row] for row in unknown.tolist()]
    new_ids = dict(zip(names, range(base, base + len(names)), strict=True))
    if len(new_ids) == len(names):
        ordinals[unknown] = np.arange(base, base + len(names))
        first_rows = unknown.tolist()
    else:  # some of them come several times
        new_ids = {}
        for row, name in zip(unknown.tolist(), names, strict=True):
            ordinals[row] = new_ids.setdefault(name, base + len(new_ids))
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
    if _distinct(ordinals):
        rows = np.flatnonzero(~late)
        return ItemChange(ordinals[rows], rows, created_at[rows], new_ids, first_rows, int(late.sum()))

    # Several events of one item in one batch: walk them in order, as if each had come alone.
    _, first, count = np.unique(ordinals, return_index=True, return_counts=True)
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
    return ItemChange(
        np.concatenate([ordinals[rows], np.array(list(winner), np.int64)]),
        np.concatenate([rows, np.array([row for row, _ in winner.values()], np.int64)]),
        np.concatenate([created_at[rows], np.array([born for _, born in winner.values()], np.int64)]),
        new_ids,
        first_rows,
        stale,
    )


def _distinct(ordinals: I64) -> bool:
    ascending = np.sort(ordinals)
    return not (ascending[1:] == ascending[:-1]).any()


def plan_items(view: LiveView, items: ItemRows, change: ItemChange, totals: Totals, write: Batch) -> ItemPlan:
    """Codes, leaves and records of the items that change, put into ``write`` and ``totals``; the view stays."""
    ordinals, rows = change.ordinals, change.rows
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

    plan = ItemPlan(facets)
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
            opened=Opened.of(view.facets[facet], routed, first_new),
        )

    sources = index_names(totals.sources, items.sources)[rows]
    state = np.where(live, ItemState.LIVE, ItemState.DELETED).astype(np.uint8)
    labels, plan.new_labels = _label(view, items, encoded, live, write)
    plan.columns = {
        "state": state,
        "source": sources,
        "labels": labels,
        "created_at": change.created_at,
        "occurred_at": items.occurred_at[rows],
        "offset": items.offsets[rows],
        "raw": raw,
        "leaf": leaf,
    }
    plan.ordinals, plan.live, plan.vectors = ordinals, live, items.vectors[encoded[live]]
    item_ids = items.item_ids if len(rows) == len(items) else [items.item_ids[row] for row in rows.tolist()]
    keys_of = keys.ordinal_keys(ordinals)
    write.put_many(
        "items",
        keys_of,
        keys.item_values(
            state,
            sources,
            labels,
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
    live_keys = keys_of if live.all() else [key for key, is_live in zip(keys_of, live.tolist(), strict=True) if is_live]
    write.put_many("vectors", live_keys, keys.split(plan.vectors.tobytes(), 2 * plan.vectors[:1].size))
    write.put_many("content", live_keys, [items.content[at] for at in encoded[live].tolist()])
    if len(live_keys) < len(keys_of):
        gone = [key for key, is_live in zip(keys_of, live.tolist(), strict=True) if not is_live]
        write.delete_many("vectors", gone)
        write.delete_many("content", gone)
    totals.items_live += int(live.sum()) - int(was_live.sum())
    totals.items_deleted += int((~live).sum()) - int(was_deleted.sum())
    return plan


def _label(
    view: LiveView, items: ItemRows, encoded: I64, live: npt.NDArray[np.bool_], write: Batch
) -> tuple[npt.NDArray[np.uint32], list[Labels]]:
    """(n,) numbers of what the changing items are labelled with, and sets that are new, put into ``write``."""
    numbers = np.zeros(len(encoded), np.uint32)
    if not items.labels:
        return numbers, []
    numbers[live], fresh = view.labels.number([items.labels[at] for at in encoded[live].tolist()])
    first = len(view.labels)
    write.put_many(
        "labels", [keys.U32.pack(first + at) for at in range(len(fresh))], [encode_labels(each) for each in fresh]
    )
    return numbers, fresh
