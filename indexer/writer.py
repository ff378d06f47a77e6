"""The single writer: every change to a store and its live view goes through here, one atomic write each.

A change is planned from the view, written to RocksDB in one batch, and only then shown in the view. A write that fails
leaves both as they were.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from indexer.batch import Applied, EventBatch
from indexer.engagement_changes import find_items, plan_counters, settle_batch
from indexer.failpoints import failpoint
from indexer.item_changes import plan_items, resolve
from indexer.pending import Expired, Pending
from indexer.seen import Seen
from indexer.store import Store
from indexer.view import LiveView
from schemas.config import PendingConfig
from schemas.errors import StoreError

SetAside = Callable[[list[Expired]], int | None]
"""Makes a batch's dead letters durable, those that waited in vain among them; returns where the sink goes on, None if
it has no use for that. Called once in each batch, before it is written, with the view as it was before the batch."""


class IndexWriter:
    """Applies event batches. Use from one thread only.

    Attributes:
        store: open for writing.
        view: kept equal to the store.
        pending: engagements waiting for their item, likewise.
        seen: event_ids that came lately, likewise; None where duplicates are not asked for.
    """

    def __init__(
        self,
        store: Store,
        view: LiveView,
        pending: Pending,
        *,
        max_kinds: int = 32,
        bounds: PendingConfig | None = None,
        seen: Seen | None = None,
    ) -> None:
        self.store = store
        self.view = view
        self.pending = pending
        self.seen = seen
        self._max_kinds = max_kinds
        self._bounds = PendingConfig() if bounds is None else bounds

    def apply(self, batch: EventBatch, set_aside: SetAside | None = None, *, again: bool = False) -> Applied:
        """Apply one batch of events, whole or not at all.

        How a stream is cut into batches makes no difference to items, codes, counters, what waits and what is
        remembered.

        Args:
            batch: decoded and encoded events with the positions they bring the store to.
            set_aside: takes the engagements that waited in vain; None forgets them.
            again: the records may be in the index already: those that are change nothing. A batch of nothing else is
                not even written.

        Raises:
            StoreError: if a position would move back (unless ``again``), if records between the stored position and
                these would be left out, or the disk refuses; nothing is applied then.
        """
        view, repeated = self.view, 0
        if again:
            if all(position <= view.positions.get(name, -1) for name, position in batch.positions.items()):
                return Applied(repeated=batch.records)
            batch, repeated = batch.beyond(view.positions)
        _check_positions(view, batch)
        totals = view.totals.model_copy(deep=True)
        write = self.store.batch()
        for name, count in batch.lost.items():
            totals.records_lost += count
            write.note(totals, op="gap", partition=name, start=view.positions.get(name, 0), records=count)

        # Before duplicates are taken out: stream time advances with them as with events that come too late.
        times = batch.stream_times(totals.stream_time_ms)
        judged = None
        if self.seen is not None and batch.engagements.event_ids:
            judged = self.seen.judge(batch.engagements.event_ids, times[1 + batch.engagement_order()])
            self.seen.put(judged, write)
        duplicates = 0
        if judged is not None and judged.duplicate is not None:
            duplicates = int(judged.duplicate.sum())
            totals.engagements_duplicate += duplicates
            batch = batch.without_engagements(judged.duplicate)

        change = resolve(view, batch.items)
        upserts = plan_items(view, batch.items, change, totals, write)
        target = find_items(view, batch, change)
        settled = settle_batch(self.pending, batch, change, target, times, self._bounds)
        counted = plan_counters(view, batch, target, settled, change, totals, write, self._max_kinds)
        released = [row for _, row in settled.released]
        gone = [row for row in released + [entry.waiting for entry in settled.expired] if row in self.pending]

        write.put_many("pending", [row.key for row in settled.held], [row.record for row in settled.held])
        write.delete_many("pending", [row.key for row in gone])

        totals.next_ordinal += len(change.new_ids)
        totals.items_stale += change.stale
        applied_engagements = int(np.count_nonzero(target >= 0)) + len(released)
        totals.engagements_applied += applied_engagements
        totals.dead_letters += batch.dead_letters + len(settled.expired)
        totals.stream_time_ms = int(times[-1])
        totals.landmark = view.next_landmark(totals.stream_time_ms)
        if set_aside is not None:
            totals.dead_letter_position = set_aside(settled.expired)
        write.totals(totals)
        for name, position in batch.positions.items():
            write.offset(name, position)
        failpoint("batch.before")
        self.store.write(write)
        failpoint("batch.after")

        ready, heats = view.members.readied(upserts.rows(view)), view.aged(totals.landmark)
        with view.lock:
            ready()
            for watch in view.watchers:
                watch(change.ordinals, np.empty(0, np.int64) if counted is None else counted[0])
            view.age(totals.landmark, heats)
            upserts.show(view)
            view.hot.touch(change.ordinals)
            view.ids.add([item_id.encode() for item_id in change.new_ids])
            if counted is not None:
                view.engage(*counted)
            view.totals = totals
            view.settle()
            view.positions.update(batch.positions)
        self.pending.remove(gone)
        for row in settled.held:
            self.pending.add(row)
        if self.seen is not None and judged is not None:
            self.seen.apply(judged)
        deletes = int((batch.items.encoded[change.rows] < 0).sum())
        return Applied(
            len(change.rows) - deletes,
            deletes,
            change.stale,
            applied_engagements,
            len(settled.held),
            len(settled.expired),
            duplicates,
            repeated,
        )


def _check_positions(view: LiveView, batch: EventBatch) -> None:
    """Refuse what would apply records twice, or leave some out."""
    for name, position in batch.positions.items():
        stored = view.positions.get(name)
        if stored is None:
            continue
        if position < stored:
            raise StoreError(f"offset of {name} would move back from {stored} to {position}")
        start = batch.starts.get(name, stored)
        if start > stored + batch.lost.get(name, 0):
            raise StoreError(
                f"the index stands at {stored} of {name}, these records begin at {start}: {start - stored} would "
                f"be left out; read from {stored} on"
            )
