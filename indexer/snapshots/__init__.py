"""Snapshots: immutable publications of a shard's index that other processes and machines answer from.

A *full* snapshot is the live view at one moment as arrays to map into memory; *deltas* are all that changed since,
replaced every second. :class:`Publisher` makes them beside the writer, :class:`SnapshotFollower` reads them.
"""

from indexer.snapshots.follow import SnapshotFollower
from indexer.snapshots.layout import list_, target_at
from indexer.snapshots.publish import Publisher
from indexer.snapshots.reader import SnapshotReader

__all__ = ["Publisher", "SnapshotFollower", "SnapshotReader", "list_", "target_at"]
