"""Members change leaves: in the batch that is written, then in the view."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.keys import LeafRecord
from indexer.postings import put_sizes
from indexer.view import FacetView, LiveView
from indexer.write_batch import Batch
from schemas.store import Totals

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]


def put_leaf(write: Batch, facet: int, leaf: int, record: LeafRecord) -> None:
    """Write a leaf's record."""
    write.put("leaves", keys.FACET_U32.pack(facet, leaf), keys.leaf_value(record))


def put_routes(write: Batch, facet: int, routes: dict[int, U32]) -> None:
    """Write the candidates of raw indices."""
    for raw, leaves in routes.items():
        write.put("routes", keys.FACET_U32.pack(facet, raw), leaves.astype("<u4").tobytes())


def show_routes(facet: FacetView, routes: dict[int, U32]) -> None:
    """Show what :func:`put_routes` wrote."""
    for raw, leaves in routes.items():
        facet.routes.replace(raw, leaves)


def put_moves(write: Batch, view: LiveView, facet: int, members: npt.NDArray[Any], old: I64, new: I64) -> None:
    """Write postings, item records and size pages of members that change leaves; all (n,), members distinct."""
    if not len(members):
        return
    write.delete_many("postings", keys.posting_keys(facet, old, members))
    order = np.lexsort((members, new))  # in key order RocksDB's memtable takes them faster
    write.put_empty("postings", keys.posting_keys(facet, new[order], members[order]))
    items = view.items
    leaf = items["leaf"][members].copy()
    leaf[:, facet] = new
    values = keys.item_values(
        items["state"][members],
        items["source"][members],
        items["created_at"][members],
        items["occurred_at"][members],
        items["offset"][members],
        items["raw"][members],
        leaf,
        view.ids.of(members),
    )
    write.put_many("items", keys.ordinal_keys(members), values)
    change = np.repeat([1, -1], [len(members), len(members)])
    put_sizes(write, facet, view.facets[facet].sizes(), np.concatenate([new, old]), change)


class Moves:
    """Members on their way from one leaf to another, all (n,); read from the view before it is locked.

    Their embeddings are at hand as ``vectors``, (n, d) float16.
    """

    def __init__(self, view: LiveView, facet: int, members: npt.NDArray[Any], old: I64, new: I64) -> None:
        pool, rows_of = view.members, view.facets[facet].members.rows
        self._view, self._facet = view, facet
        self._members, self._new = members, new
        self._from, self._into = rows_of(old), rows_of(new)
        at = pool.start[self._from] + pool.place[members, facet]
        self.vectors = pool.bits[at].view(np.float16)
        self._heats = pool.heat[at]

    def show(self) -> None:
        """Let them change leaves in the view, which is locked. New leaves are there already."""
        view = self._view
        view.members.remove(self._from, self._members)
        view.members.append(self._into, self._members, self.vectors, self._heats)
        left = np.unique(self._from)
        disturbed = view.members.touched[left] > view.order.slack * view.members.length[left]
        view.sort(np.union1d(self._into, left[disturbed]))
        view.items["leaf"][self._members, self._facet] = self._new


def note(write: Batch, totals: Totals, plan_ms: float, began: float, now: float, **entry: Any) -> None:
    """Journal an operation: what, to what, why, sizes before and after, how many moved, milliseconds.

    ``ms`` is the writer's part up to the write; ``began`` and ``now`` are seconds.
    """
    write.note(totals, **entry, plan_ms=round(plan_ms, 3), ms=round((now - began) * 1_000, 3))
