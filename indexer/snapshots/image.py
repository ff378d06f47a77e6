"""What snapshots take from the live view: the one place that knows how the view keeps it.

All functions expect ``view.lock`` to be held and return copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.counters import CounterRows
from indexer.keys import ItemState
from indexer.view import LiveView

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class At:
    """Where a view stands: partition name -> next offset, and counts as in the manifest."""

    offsets: dict[str, int]
    ordinals: int
    items_live: int
    splits: int
    merges: int


@dataclass(frozen=True, slots=True)
class ItemColumns:
    """n items: live (n,) bool, created_at (n,) int64 epoch ms, raw and leaf (n, F) uint32."""

    live: npt.NDArray[np.bool_]
    created_at: I64
    raw: U32
    leaf: U32


def at(view: LiveView) -> At:
    """Where the view stands."""
    totals = view.totals
    return At(dict(view.positions), totals.next_ordinal, totals.items_live, totals.splits, totals.merges)


def items(view: LiveView, ordinals: I64 | slice) -> ItemColumns:
    """Columns of some items."""
    rows = view.items
    return ItemColumns(
        np.asarray(rows["state"][ordinals] == ItemState.LIVE),
        np.array(rows["created_at"][ordinals]),
        np.array(rows["raw"][ordinals]),
        np.array(rows["leaf"][ordinals]),
    )


def vectors(view: LiveView, facet: int, ordinals: I64) -> F16:
    """(n, d) float16 facet embeddings; zeros of items that are not live."""
    live = view.items["state"][ordinals] == ItemState.LIVE
    out = np.zeros((len(ordinals), view.meta.dim), np.float16)
    out[live] = view.vectors(ordinals[live], facet)
    return out


def counters(view: LiveView, ordinals: I64 | slice) -> CounterRows:
    """Counters of some items, without those that no reader asks for."""
    rows = view.items
    epochs = np.array(rows["epochs"][ordinals])
    n = len(epochs)
    nothing = np.zeros((n, 0), np.uint32)
    return CounterRows(
        nothing, epochs, np.array(rows["decayed"][ordinals]), np.zeros(n), np.array(rows["last_at"][ordinals])
    )


def item_ids(view: LiveView, ordinals: I64 | slice) -> list[str]:
    """Ids of some items."""
    if isinstance(ordinals, slice):
        return view.ids[ordinals]
    return [view.ids[ordinal] for ordinal in ordinals.tolist()]


def leaves(view: LiveView, facet: int) -> tuple[I64, F32]:
    """Live leaves (m,) ascending and their centroids (m, d)."""
    found = view.facets[facet].alive()
    return found, np.array(view.facets[facet].leaves["centroid"][found])


def centroids(view: LiveView, facet: int, wanted: I64) -> F32:
    """(m, d) centroids of leaves."""
    return np.array(view.facets[facet].leaves["centroid"][wanted])


def routes(view: LiveView, facet: int) -> tuple[I64, U32, I64]:
    """Raw indices with a route (r,) ascending, their candidate leaves one after the other, (r,) how many each has."""
    pool = view.facets[facet].routes
    raws = np.flatnonzero(pool.lengths)
    targets, counts = pool.gather(raws)
    return raws, targets, counts
