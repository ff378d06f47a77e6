"""Names and kinds of all metrics, in one place. Scrape them at ``/metrics``."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

RECORDS: Final = "facetstream_records"
"""Records applied, by stream: items, engagements."""
DEAD_LETTERS: Final = "facetstream_dead_letters"
"""Records set aside, by reason."""
ITEMS_LIVE: Final = "facetstream_items_live"
"""Live items in the index, by shard."""
ENGAGEMENTS_PENDING: Final = "facetstream_engagements_pending"
"""Engagements waiting for their item, by shard."""
BATCH_SECONDS: Final = "facetstream_batch_seconds"
"""Seconds to apply one batch: dead letters, write, live view."""
FRESHNESS_SECONDS: Final = "facetstream_freshness_seconds"
"""Seconds from taking a record from the source to its being retrievable."""
SYNC_SECONDS: Final = "facetstream_sync_seconds"
"""Seconds of one group commit of the write-ahead log."""
LAG_RECORDS: Final = "facetstream_lag_records"
"""Records between the applied offset and the partition's end, by partition."""
REBALANCED: Final = "facetstream_rebalanced"
"""Rebalancing operations applied, by op: split, merge, mark, recenter, reassign."""
REBALANCE_DROPPED: Final = "facetstream_rebalance_dropped"
"""Plans dropped because their leaf had changed, by op."""
REBALANCE_MOVED: Final = "facetstream_rebalance_moved"
"""Members moved by rebalancing, by op."""
REBALANCE_CHECKED: Final = "facetstream_rebalance_checked"
"""Members near a new border whose leaf was chosen anew."""
REBALANCE_SECONDS: Final = "facetstream_rebalance_seconds"
"""Seconds of one rebalancing operation, or of one step of it, by op and part: plan, apply (the writer's)."""
BACKPRESSURE_SECONDS: Final = "facetstream_backpressure_seconds"
"""Seconds that batches waited for an overloaded leaf to be split, by shard."""
LEAVES: Final = "facetstream_leaves"
"""Live leaves, by shard and facet."""
LEAVES_OUT_OF_BOUNDS: Final = "facetstream_leaves_out_of_bounds"
"""Unmarked leaves outside the bounds in force, by shard."""
QUEUE_BATCHES: Final = "facetstream_queue_batches"
"""Batches waiting for the writer, by shard."""
STUCK: Final = "facetstream_stuck"
"""1 where a shard lags and no offset has moved for ``http.progress_after_s``, else 0; by shard."""
CHECKPOINTS: Final = "facetstream_checkpoints"
"""Checkpoints taken, by shard."""
SNAPSHOTS: Final = "facetstream_snapshots"
"""Snapshots published, by shard and kind: full, delta."""
SNAPSHOT_AGE: Final = "facetstream_snapshot_age_seconds"
"""Seconds since what is published held all that was applied, by shard."""
SNAPSHOT_BYTES: Final = "facetstream_snapshot_bytes"
"""Bytes of the newest snapshot, by shard and kind."""
SNAPSHOT_SECONDS: Final = "facetstream_snapshot_seconds"
"""Seconds to publish one snapshot, by kind."""
REFRESHES: Final = "facetstream_refreshes"
"""Refreshes of the model, by outcome: done, failed."""
REFRESH_SECONDS: Final = "facetstream_refresh_seconds"
"""Seconds to encode, file and balance one shard anew (part "shard"), or of a refresh from asking to answering (part
"whole")."""
REFRESH_CHANGED: Final = "facetstream_refresh_changed_share"
"""Share of the items whose code the last refresh changed, by facet."""
REFRESH_SIMILARITY: Final = "facetstream_refresh_similarity"
"""Cosine of the items' embeddings before and after the last refresh, by facet and stat: mean, p05."""

_FINE: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_COARSE: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside each counter that nobody asked for


class Metrics:
    """One daemon's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.records = Counter(RECORDS, "Records applied", ["stream"], registry=registry)
        self.dead_letters = Counter(DEAD_LETTERS, "Records set aside", ["reason"], registry=registry)
        self.items_live = Gauge(ITEMS_LIVE, "Live items in the index", ["shard"], registry=registry)
        self.pending = Gauge(ENGAGEMENTS_PENDING, "Engagements waiting for their item", ["shard"], registry=registry)
        self.batch_seconds = Histogram(BATCH_SECONDS, "Seconds to apply one batch", buckets=_FINE, registry=registry)
        self.freshness_seconds = Histogram(
            FRESHNESS_SECONDS, "Seconds from source to retrievable, per batch", buckets=_FINE, registry=registry
        )
        self.sync_seconds = Histogram(SYNC_SECONDS, "Seconds of one group commit", buckets=_FINE, registry=registry)
        self.lag = Gauge(LAG_RECORDS, "Records to the partition's end", ["partition"], registry=registry)
        self.rebalanced = Counter(REBALANCED, "Rebalancing operations", ["op"], registry=registry)
        self.rebalance_dropped = Counter(REBALANCE_DROPPED, "Plans dropped", ["op"], registry=registry)
        self.moved = Counter(REBALANCE_MOVED, "Members moved by rebalancing", ["op"], registry=registry)
        self.checked = Counter(REBALANCE_CHECKED, "Members whose leaf was chosen anew", registry=registry)
        self.rebalance_seconds = Histogram(
            REBALANCE_SECONDS, "Seconds of one rebalancing step", ["op", "part"], buckets=_FINE, registry=registry
        )
        self.backpressure = Counter(BACKPRESSURE_SECONDS, "Seconds batches waited", ["shard"], registry=registry)
        self.leaves = Gauge(LEAVES, "Live leaves", ["shard", "facet"], registry=registry)
        self.out_of_bounds = Gauge(
            LEAVES_OUT_OF_BOUNDS, "Unmarked leaves outside the bounds", ["shard"], registry=registry
        )
        self.queue = Gauge(QUEUE_BATCHES, "Batches waiting for the writer", ["shard"], registry=registry)
        self.stuck = Gauge(STUCK, "1 where a shard lags and no offset moves", ["shard"], registry=registry)
        self.checkpoints = Counter(CHECKPOINTS, "Checkpoints taken", ["shard"], registry=registry)
        self.snapshots = Counter(SNAPSHOTS, "Snapshots published", ["shard", "kind"], registry=registry)
        self.snapshot_age = Gauge(
            SNAPSHOT_AGE, "Seconds since what is published held all that was applied", ["shard"], registry=registry
        )
        self.snapshot_bytes = Gauge(
            SNAPSHOT_BYTES, "Bytes of the newest snapshot", ["shard", "kind"], registry=registry
        )
        self.snapshot_seconds = Histogram(
            SNAPSHOT_SECONDS, "Seconds to publish one snapshot", ["kind"], buckets=_FINE, registry=registry
        )
        self.refreshes = Counter(REFRESHES, "Refreshes of the model", ["outcome"], registry=registry)
        self.refresh_seconds = Histogram(
            REFRESH_SECONDS, "Seconds of a refresh", ["part"], buckets=_COARSE, registry=registry
        )
        self.refresh_changed = Gauge(
            REFRESH_CHANGED, "Share of items whose code changed at the last refresh", ["facet"], registry=registry
        )
        self.refresh_similarity = Gauge(
            REFRESH_SIMILARITY, "Cosine of embeddings before and after it", ["facet", "stat"], registry=registry
        )
