"""The writer loop: takes prepared batches, makes dead letters safe, applies, syncs in groups, lets the compactor in."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from indexer.batch import EventBatch, empty_engagements, empty_items
from indexer.index import Index
from indexer.pending import Expired
from indexer.rebalance.compactor import Compactor, out_of_bounds
from indexer.rebalance.plans import Outcome
from indexer.writer import IndexWriter
from schemas.config import Config
from schemas.dead_letters import DeadLetter
from schemas.errors import StoreError, UsageError
from streamer.batching import Prepared
from streamer.dead_letters import DeadLetterSink, TopicDeadLetters
from streamer.decode import Decoder
from streamer.inbox import Change, Inbox, InboxClosedError
from streamer.merge_pace import AT_ONCE, rest_s
from streamer.metrics import Metrics
from streamer.reader import Reader, Span
from streamer.sources.base import Partition, Source, Stream

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without

log = structlog.get_logger(__name__)

_TURN_S: Final = 0.05
_GAUGES_S: Final = 1.0
_SAMPLES: Final = 100_000
_OVERLOADED: Final = "an overloaded leaf is being split"


@dataclass(slots=True)
class Progress:
    """What the writer has done; read by others without a lock, each field on its own.

    Attributes:
        turned_at: monotonic seconds of the loop's last turn ("alive").
        applied_at: monotonic seconds of the last batch ("making progress").
        moved: members that rebalancing moved.
        rebalancing_ms, longest_change_ms: what rebalancing took of the writer, all in all and at a time.
        waits_for: what keeps the writer from applying batches, if anything does.
        freshness_s: seconds from source to retrievable of recent batches, with their number of records.
    """

    records: int = 0
    items: int = 0
    engagements: int = 0
    letters: int = 0
    moved: int = 0
    rebalancing_ms: float = 0.0
    longest_change_ms: float = 0.0
    turned_at: float = field(default_factory=time.monotonic)
    applied_at: float = field(default_factory=time.monotonic)
    waits_for: str | None = None
    freshness_s: list[tuple[float, int]] = field(default_factory=list)


class _LeaseLostError(Exception):
    """Another process may own the shard, and this one is to end."""


class Pipeline:
    """Source to index, until stopped or until the source's present end.

    Args:
        index: open for writing; this object's thread becomes its writer.
        source: read by a thread of its own from the positions the store holds.
        sink: takes dead letters; closed when :meth:`run` ends.
        model: encodes items.
        config: all settings.
        span: which records; by default from where the store stands on, for ever.
        shard: number in metrics and logs.
        on_progress: called after each batch.
        on_durable: told the positions that survive a power loss, for lag tools.
        may_write: whether this process still owns the shard; while it says no, nothing is written.
    """

    def __init__(
        self,
        index: Index,
        source: Source,
        sink: DeadLetterSink,
        model: FrozenModel,
        config: Config,
        *,
        span: Span | None = None,
        shard: int = 0,
        metrics: Metrics | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_durable: Callable[[Mapping[Partition, int]], None] = lambda _: None,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self._index = index
        self._sink = sink
        self._config = config
        self._source = source
        self._on_progress = on_progress
        self._on_durable = on_durable
        self._may_write = may_write
        self._shard = str(shard)
        self._partitions = {str(partition): partition for partition in source.partitions()}
        self._synced_at = time.monotonic()
        self._gauged_at = 0.0
        self._unsynced = False
        self._stop = threading.Event()
        self._span = Span() if span is None else span
        self._asked_to_stop = False
        self._abandoned = False
        self._behind_since = math.inf
        self.metrics = metrics if metrics is not None else Metrics()
        self.progress = Progress()
        self.inbox: Inbox[Prepared] = Inbox(config.writer.queue_batches)
        self.compactor = Compactor(index.view, config.rebalance, self.inbox.call, self._count)
        decoder = Decoder(config.limits, model.check)
        self.reader = Reader(source, decoder, model, self.inbox, config, self._span)

    def stop(self) -> None:
        """Ask for a graceful end: what is queued is applied, synced and committed. May be called by signal handlers."""
        # Nothing but this flag: a handler runs in the middle of the writer's own code, which may hold any lock.
        self._asked_to_stop = True

    def abandon(self) -> None:
        """End at once: what is queued is left to whoever owns the shard now. May be called by any thread."""
        self._abandoned = True

    def _end_threads(self) -> None:
        self._stop.set()
        self.reader.stop()

    def run(self) -> None:
        """Run on the calling thread until stopped or at the end.

        Raises:
            FacetstreamError: whatever reading, writing or rebalancing could not get over; the store stays consistent.
        """
        try:
            self._begin()
        except BaseException:
            self.inbox.close()
            self._sink.close()
            raise
        threads = [threading.Thread(target=self.reader.run, name="reader", daemon=True)]
        if self._config.rebalance.enabled:
            threads.append(threading.Thread(target=self._rebalance, name="compactor", daemon=True))
        for thread in threads:
            thread.start()
        try:
            self._write_until_end()
        finally:
            self._end_threads()
            self.inbox.close()
            for thread in threads:
                thread.join(self._config.writer.shutdown_s)
            self._sink.close()
        bounded = self._span.to_end or self._span.stop is not None
        if bounded and not self._asked_to_stop and not self._abandoned and self._config.rebalance.enabled:
            # A bounded run ends balanced; nobody else is left to do it.
            compactor = self._index.compactor(self._config, self._count)
            compactor.run_until_idle(stopped=lambda: self._asked_to_stop or self._abandoned)
            self._unsynced = True
        self._sync()
        if not self._abandoned:
            self._on_durable(self._durable())

    def use_sink(self, sink: DeadLetterSink, position: int | None) -> None:
        """Send dead letters elsewhere from now on. May be called by any thread but the writer's.

        Args:
            sink: takes them.
            position: where in it letters may be found already.

        Raises:
            InboxClosedError: if the writer is stopping.
        """

        def exchange(_: IndexWriter) -> None:
            self._sink.close()
            self._sink = sink
            self._restore_sink(position)

        self.inbox.call(exchange)

    def _begin(self) -> None:
        """Make store, source and sink agree on where to go on."""
        identity = self._source.identity()
        self._index.check_source(identity)
        positions = self._positions()
        starts = self.reader.begin(positions)
        new = {str(partition): at for partition, at in starts.items() if at and partition not in positions}
        self._index.bind_source(identity, new)
        self._restore_sink(self._index.view.totals.dead_letter_position)
        self.progress.turned_at = self.progress.applied_at = time.monotonic()

    def _positions(self) -> dict[Partition, int]:
        """Where the store stands in each partition of the source; 0 where it was filled before and holds nothing."""
        stored = self._index.view.positions
        for name, position in stored.items():
            if position and name not in self._partitions:
                raise UsageError(
                    f"the store holds {position} records of {name}, which the source does not have; put it back, "
                    "or start with an empty store"
                )
        known = stored if not self._index.source() else dict.fromkeys(self._partitions, 0) | dict(stored)
        return {partition: known[name] for name, partition in self._partitions.items() if name in known}

    def _restore_sink(self, position: int | None) -> None:
        self._sink.restore(position)
        stored = self._index.view.totals.dead_letter_position
        if self._sink.position not in {None, stored}:
            # Else a crash right after the first letters would leave nothing to cut them back to.
            meta = self._index.view.meta
            nothing = EventBatch(empty_items(meta.facets, meta.dim), empty_engagements())
            self._index.writer.apply(nothing, lambda _: self._sink.position)

    def stuck(self) -> str | None:
        """Why no offset moves although there are records to apply; None while offsets move, or nothing is left."""
        behind = {name: records for name, records in self.lag().items() if records}
        if not behind:
            self._behind_since = math.inf
            return None
        self._behind_since = min(self._behind_since, time.monotonic())  # before it there was nothing to do
        idle_s = time.monotonic() - max(self.progress.applied_at, self._behind_since)
        if idle_s < self._config.http.progress_after_s:
            return None
        at = self._index.view.positions
        where = ", ".join(f"{name} at {at.get(name, 0)}, {records} behind" for name, records in behind.items())
        why = self.progress.waits_for or "the source gives no records; has the partition a leader?"
        return f"no offset moved for {idle_s:.0f} s: {where}; {why}"

    def lag(self) -> dict[str, int]:
        """Records each partition is behind its end, as last asked."""
        applied = self._index.view.positions
        return {
            str(partition): max(0, end - applied.get(str(partition), 0)) for partition, end in self.reader.ends.items()
        }

    # -- the writer's turn -----------------------------------------------------------------------------------------

    def _write_until_end(self) -> None:
        kept: Prepared | None = None
        while True:
            now = time.monotonic()
            if self.progress.waits_for == _OVERLOADED:
                self.metrics.backpressure.labels(self._shard).inc(now - self.progress.turned_at)
            self.progress.turned_at = now
            if self._abandoned:
                return
            if self._asked_to_stop:
                self._end_threads()
            self.progress.waits_for = self._obstacle()
            taken: Prepared | Change | None
            if kept is not None and self.progress.waits_for is None:
                taken, kept = kept, None
            else:
                try:
                    taken = self.inbox.take(_TURN_S, batches=kept is None and self.progress.waits_for is None)
                except EOFError:
                    if kept is None:
                        return
                    time.sleep(_TURN_S)
                    continue
            if isinstance(taken, Prepared) and not self._may_write():
                kept = taken  # the lease ended while we waited for it, in a process that was frozen for example
            elif isinstance(taken, Prepared):
                try:
                    self._apply(taken)
                except _LeaseLostError:
                    self.abandon()
                    return
            elif taken is not None:
                taken(self._index.writer)
                self._unsynced = True
            if time.monotonic() - self._synced_at > self._config.writer.group_commit_ms / 1_000:
                self._sync()
                self._on_durable(self._durable())
            self._set_gauges()

    def _obstacle(self) -> str | None:
        """What keeps batches waiting."""
        if not self._may_write():
            if self._stop.is_set():
                self.abandon()  # the lease may never come back: what is queued is left to whoever has it
            return "the consumer group has not been heard of for kafka.session_timeout_s: another may own the shard"
        if self._stop.is_set():
            return None  # nobody splits any more: waiting would never end
        if self._config.rebalance.enabled and self.compactor.overloaded():
            return _OVERLOADED
        return None

    def _wait_for_lease(self) -> None:
        """Before a topic that whoever owns the shard now writes too: a process may be frozen at any point.

        Raises:
            _LeaseLostError: if it ended, and we are to end too.
        """
        while isinstance(self._sink, TopicDeadLetters) and not self._may_write():
            self.progress.turned_at = time.monotonic()
            if self._abandoned or self._asked_to_stop:
                raise _LeaseLostError
            time.sleep(_TURN_S)

    def _apply(self, prepared: Prepared) -> None:
        began = time.monotonic()
        letters = prepared.letters

        def set_aside(expired: list[Expired]) -> int | None:
            # Before the batch: a crash in between repeats a dead letter rather than losing one, and the file sink
            # is cut back to the stored position.
            letters.extend(map(_letter_of, expired))
            if letters:
                self._wait_for_lease()
                self._sink.write(letters)
            return self._sink.position

        applied = self._index.writer.apply(prepared.batch, set_aside)
        self._unsynced = True
        now = time.monotonic()
        progress, metrics = self.progress, self.metrics
        progress.records += prepared.records
        progress.items += len(prepared.batch.items)
        progress.engagements += len(prepared.batch.engagements)
        progress.letters += len(letters)
        progress.applied_at = now
        if len(progress.freshness_s) < _SAMPLES:
            progress.freshness_s.append((now - prepared.taken_at, prepared.records))
        metrics.records.labels(Stream.ITEMS).inc(len(prepared.batch.items))
        metrics.records.labels(Stream.ENGAGEMENTS).inc(len(prepared.batch.engagements))
        for letter in letters:
            metrics.dead_letters.labels(letter.reason).inc()
        metrics.batch_seconds.observe(now - began)
        metrics.freshness_seconds.observe(now - prepared.taken_at)
        if applied.items_stale:
            log.debug("items_stale", count=applied.items_stale)
        self._on_progress(progress)

    def _sync(self) -> None:
        if self._unsynced:
            began = time.monotonic()
            self._index.store.sync()
            self.metrics.sync_seconds.observe(time.monotonic() - began)
            self._unsynced = False
        self._synced_at = time.monotonic()

    def _durable(self) -> dict[Partition, int]:
        applied = self._index.view.positions
        return {self._partitions[name]: at for name, at in applied.items() if name in self._partitions}

    def _set_gauges(self) -> None:
        now = time.monotonic()
        if now - self._gauged_at < _GAUGES_S:
            return
        self._gauged_at = now
        view, metrics, shard = self._index.view, self.metrics, self._shard
        metrics.items_live.labels(shard).set(view.totals.items_live)
        metrics.pending.labels(shard).set(len(self._index.pending))
        metrics.queue.labels(shard).set(len(self.inbox))
        metrics.out_of_bounds.labels(shard).set(out_of_bounds(view))
        metrics.stuck.labels(shard).set(self.stuck() is not None)
        for number, facet in enumerate(view.facets):
            metrics.leaves.labels(shard, number).set(len(facet.alive()))
        for name, behind in self.lag().items():
            metrics.lag.labels(name).set(behind)

    # -- the compactor's thread ------------------------------------------------------------------------------------

    def _rebalance(self) -> None:
        config = self._config.rebalance
        merge_at = time.monotonic() + config.merge_interval_s
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                merges = began > merge_at
                flowing = began - self.progress.applied_at < _TURN_S
                done = self.compactor.round(merges=merges, merge_items=AT_ONCE if flowing else None)
                if merges:
                    now = time.monotonic()
                    merge_at = now + rest_s(
                        config.merge_interval_s,
                        now - began,
                        merged=done.merges,
                        waiting=len(self.inbox),
                        applied=self.progress.applied_at >= began,
                    )
                if done.idle:
                    self._stop.wait(config.interval_ms / 1_000)
        except InboxClosedError:
            return  # the writer is stopping; what was planned can be planned again
        except StoreError:
            return  # raised on the writer's thread too, which ends the pipeline with it
        except Exception as error:  # noqa: BLE001  # a defect in planning: end the pipeline with it instead of looping
            self._end_threads()
            self.inbox.end(error)

    def _count(self, outcome: Outcome) -> None:
        metrics = self.metrics
        if not outcome.applied:
            metrics.rebalance_dropped.labels(outcome.op).inc()
            return
        if outcome.rest is None:
            metrics.rebalanced.labels(outcome.op).inc()
        metrics.moved.labels(outcome.op).inc(outcome.moved)
        metrics.checked.inc(outcome.checked)
        metrics.rebalance_seconds.labels(outcome.op, "plan").observe(outcome.plan_ms / 1_000)
        metrics.rebalance_seconds.labels(outcome.op, "apply").observe(outcome.apply_ms / 1_000)
        self.progress.moved += outcome.moved
        self.progress.rebalancing_ms += outcome.apply_ms
        self.progress.longest_change_ms = max(self.progress.longest_change_ms, outcome.apply_ms)


def _letter_of(entry: Expired) -> DeadLetter:
    row = entry.waiting
    topic, _, partition = row.source.rpartition("-")
    return DeadLetter(
        reason=entry.reason,
        detail=f"no item {row.item_id[:64]!r} came for this engagement within the bounds of [pending]",
        topic=topic,
        partition=int(partition),
        offset=row.offset,
        failed_at_ms=time.time_ns() // 1_000_000,
        key=row.item_id.encode(),
        value=row.record,
        error=type(entry).__name__,
    )
