"""What a batch's engagements come to: which find their item, which wait, and what is counted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.batch import EventBatch
from indexer.counters import CounterRows, add_engagements
from indexer.item_changes import ItemChange
from indexer.names import index_names
from indexer.pending import Pending, Settled, Waiting, settle
from indexer.view import LiveView
from indexer.write_batch import Batch
from schemas.config import PendingConfig
from schemas.store import Totals

I64 = npt.NDArray[np.int64]


def find_items(view: LiveView, batch: EventBatch, change: ItemChange) -> I64:
    """(m,) ordinal of each engagement's item, -1 where the item is not there yet when the engagement comes."""
    rows = batch.engagements
    ordinals = view.ordinals_of(rows.item_ids)
    unknown = np.flatnonzero(ordinals < 0)
    if not len(unknown) or not change.new_ids:
        return ordinals
    base = view.totals.next_ordinal
    known_from = batch.item_order()[change.first_rows]
    created = np.fromiter((change.new_ids.get(rows.item_ids[row], -1) for row in unknown.tolist()), np.int64)
    there = created >= 0
    there[there] = known_from[created[there] - base] < batch.engagement_order()[unknown[there]]
    ordinals[unknown[there]] = created[there]
    return ordinals


def settle_batch(
    pending: Pending,
    batch: EventBatch,
    change: ItemChange,
    target: I64,
    times: I64,
    bounds: PendingConfig,
) -> Settled:
    """What becomes of those that wait, and of this batch's engagements whose item is not there when they come.

    ``times`` is (1 + places,), stream time up to each place in the batch.
    """
    rows, waits = batch.engagements, np.flatnonzero(target < 0).tolist()
    if not waits and not len(pending):
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
    return settle(pending, arrivals, created, times, bounds)


def plan_counters(
    view: LiveView,
    batch: EventBatch,
    found: I64,
    settled: Settled,
    change: ItemChange,
    totals: Totals,
    write: Batch,
    max_kinds: int,
) -> tuple[I64, CounterRows] | None:
    """Counters of the touched items after this batch.

    Engagements count in the order in which they are applied, whether they waited or not, so that sums and the
    order of kinds come out the same whatever the batches.
    """
    rows, released = batch.engagements, [row for _, row in settled.released]
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
    kinds = index_names(totals.kinds, kind_names, limit=max_kinds).astype(np.int64)

    touched, row_of = np.unique(target, return_inverse=True)
    before = _counters_of(view, touched, len(totals.kinds))
    half_lives = view.meta.half_lives_s
    after = add_engagements(before, row_of, kinds, times, values, half_lives)
    packed = np.empty(len(touched), keys.stats_dtype(len(half_lives), len(totals.kinds)))
    packed["counts"], packed["epochs"], packed["decayed"] = after.counts, after.epochs, after.decayed
    packed["value_sum"], packed["last_at"] = after.value_sum, after.last_at
    write.put_many("stats", keys.ordinal_keys(touched), keys.split(packed.tobytes(), packed.dtype.itemsize))
    return touched, after


def _counters_of(view: LiveView, ordinals: I64, kinds: int) -> CounterRows:
    """Counters of n ordinals, zero for those not yet shown, wide enough for all kinds."""
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
