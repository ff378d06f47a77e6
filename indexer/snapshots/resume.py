"""What changed since a full snapshot that another process published, told from the store alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from indexer.snapshots import image
from indexer.snapshots.delta import Base
from indexer.snapshots.reader import SnapshotReader
from indexer.view import LiveView
from schemas.errors import UsageError

I64 = npt.NDArray[np.int64]


def base_of(reader: SnapshotReader) -> Base:
    """What deltas need to know of a full snapshot."""
    info, facets = reader.info, range(reader.meta.facets)
    return Base(
        image.At.of(info),
        [np.array(reader.stored[f"f{facet}.leaves"]) for facet in facets],
        [np.array(reader.stored[f"f{facet}.raws"]) for facet in facets],
    )


def changed_since(view: LiveView, reader: SnapshotReader) -> tuple[I64, I64]:
    """Ordinals of which the item, and of which the counters, changed since the full snapshot that a reader has.

    An item's record names the event that decided it: if the full snapshot's offsets are beyond that, it holds it.
    Counters are compared. ``view.lock`` keeps the writer out.

    Raises:
        UsageError: if the snapshot is one of another store, or of one that this was restored from, or ahead of this
            one, or offsets were reset since.
    """
    info = reader.info
    behind = any(at > view.positions.get(name, 0) for name, at in reader.at.offsets.items())
    same = reader.meta == view.meta and info.history == view.totals.history
    if not same or behind or view.totals.reset_from:
        raise UsageError(
            f"what is published of shard {info.shard} cannot be compared with its store (made anew, restored or reset "
            "since); publish it in full"
        )
    items = view.items
    known = np.array([info.offsets.get(name, 0) for name in view.totals.sources], np.int64)
    ordinals = np.arange(view.totals.next_ordinal)
    later = items["offset"][ordinals] >= known[items["source"][ordinals]] if len(known) else ordinals < 0
    later |= ordinals >= info.ordinals

    old = slice(0, info.ordinals)
    touched = np.asarray(items["last_at"][old] != reader.stored["last_at"][old])
    for name in ("epochs", "decayed"):
        touched |= (items[name][old] != reader.stored[name][old]).any(axis=1)
    counted = np.concatenate([touched, items["decayed"][info.ordinals :].any(axis=1)])
    return np.flatnonzero(later), np.flatnonzero(counted)
