"""What a batch of items does to posting lists, leaves and routes: planned, written, then shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.keys import LeafRecord, LeafState
from indexer.labels import Labels
from indexer.routing import Routed
from indexer.view import FacetView, LiveView
from indexer.write_batch import Batch

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Opened:
    """Routes of raw indices met for the first time.

    Attributes:
        raws, hosts: (m,) raw indices and the leaves they lead to.
        leaves: (k,) those of the leaves that are new.
        centroids: (k, d) float32, the mean of what their raw indices stand for.
    """

    raws: I64
    hosts: I64
    leaves: I64
    centroids: npt.NDArray[np.float32]

    @classmethod
    def of(cls, facet: FacetView, routed: Routed, first_new: int) -> Opened:
        """What routing opens, with leaf ids from ``first_new`` on."""
        leaves = first_new + np.arange(routed.opened)
        new = routed.hosts >= first_new
        at = routed.hosts[new] - first_new
        sums = np.zeros((routed.opened, facet.codewords.shape[2]), np.float32)
        np.add.at(sums, at, facet.reconstruct(routed.new_raws[new]))
        counts = np.bincount(at, minlength=routed.opened).astype(np.float32)
        return cls(routed.new_raws, routed.hosts, leaves, sums / counts[:, None])


class ItemPlan:
    """Postings, leaves and item columns to show in the view once they are written."""

    def __init__(self, facets: int) -> None:
        self.ordinals: I64 = np.empty(0, np.int64)
        self.live: npt.NDArray[np.bool_] = np.empty(0, np.bool_)
        self.vectors: npt.NDArray[np.float16] = np.empty((0, 0, 0), np.float16)
        self.new_labels: list[Labels] = []
        self.columns: dict[str, npt.NDArray[np.integer]] = {}
        self._out: list[tuple[I64, I64]] = [(np.empty(0, np.int64), np.empty(0, np.int64))] * facets
        self._into = list(self._out)
        self._opened: list[Opened | None] = [None] * facets

    def add_facet(
        self,
        facet: int,
        write: Batch,
        view: LiveView,
        *,
        out: tuple[I64, I64],
        into: tuple[I64, I64],
        opened: Opened,
    ) -> None:
        """Plan one facet: postings that go, postings that come, and routes that open."""
        self._out[facet], self._into[facet], self._opened[facet] = out, into, opened
        write.delete_many("postings", keys.posting_keys(facet, *out))
        order = np.lexsort((into[1], into[0]))  # in key order RocksDB's memtable takes them a third faster
        write.put_empty("postings", keys.posting_keys(facet, into[0][order], into[1][order]))
        for leaf, centroid in zip(opened.leaves.tolist(), opened.centroids, strict=True):
            record = LeafRecord(LeafState.NORMAL, 0, 0, centroid)
            write.put("leaves", keys.FACET_U32.pack(facet, leaf), keys.leaf_value(record))
        targets = opened.hosts.astype("<u4").tobytes()
        route_keys = [keys.FACET_U32.pack(facet, raw) for raw in opened.raws.tolist()]
        write.put_many("routes", route_keys, keys.split(targets, 4))
        sizes = view.facets[facet].sizes()
        change = (np.concatenate([into[0], out[0]]), np.repeat([1, -1], [len(into[0]), len(out[0])]))
        put_sizes(write, facet, sizes, *change)

    def rows(self, view: LiveView) -> I64:
        """Rows of the view's members that some are added to."""
        return np.concatenate(
            [facet.members.rows(leaves) for facet, (leaves, _) in zip(view.facets, self._into, strict=True)]
        )

    def show(self, view: LiveView) -> None:
        """Make the view equal to what was written."""
        if not len(self.ordinals):
            return
        view.labels.add(self.new_labels)
        items = view.items
        items.resize(max(len(items), int(self.ordinals.max()) + 1))
        for name, column in self.columns.items():
            items[name][self.ordinals] = column
        members = view.members
        members.ensure_items(len(items))
        live = self.ordinals[self.live]
        heats = view.heats(live)
        view.changed += len(self.ordinals)
        by_ordinal = np.argsort(live)
        for facet, f in enumerate(view.facets):
            opened = self._opened[facet]
            if opened is not None and len(opened.raws):
                f.ensure_leaves(int(opened.leaves.max(initial=-1)) + 1)
                f.leaves["alive"][opened.leaves] = True
                f.set_centroids(opened.leaves, opened.centroids)
                f.routes.append(opened.raws, opened.hosts.astype(np.uint32))
                f.raws.append(opened.hosts, opened.raws.astype(np.uint32))
            out_leaf, out_ordinal = self._out[facet]
            members.remove(f.members.rows(out_leaf), out_ordinal)
            into_leaf, into_ordinal = self._into[facet]
            enters = by_ordinal[np.searchsorted(live, into_ordinal, sorter=by_ordinal)]
            members.append(f.members.rows(into_leaf), into_ordinal, self.vectors[enters, facet], heats[enters])
            stays = np.ones(len(live), np.bool_)
            stays[enters] = False
            rows = f.members.rows(items["leaf"][live[stays], facet])
            members.renew(rows, live[stays], self.vectors[stays, facet], heats[stays])  # it may have been created anew


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
