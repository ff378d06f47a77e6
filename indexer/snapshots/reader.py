"""One full snapshot with the changes since, as a live view: the same arrays, the same kernels, the same answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from indexer.keys import ItemState
from indexer.order import Order
from indexer.ragged import RaggedPool
from indexer.retrieval.readers import ViewReader
from indexer.snapshots import image
from indexer.snapshots.delta import Segment
from indexer.snapshots.filing import Routes
from indexer.snapshots.full import POOL, Stored
from indexer.view import FacetView, LiveView
from schemas.errors import StoreCorruptError
from schemas.snapshot import SnapshotInfo
from schemas.store import Totals

I64 = npt.NDArray[np.int64]


class SnapshotReader(ViewReader):
    """An :class:`indexer.retrieval.readers.IndexReader` of one full snapshot and a delta of it. Safe from any thread.

    It never turns to another full snapshot, so ordinals mean the same as long as it lives.

    Args:
        info: manifest of the full snapshot.
        stored, changing: its arrays, see :func:`indexer.snapshots.full.open_full`.

    Attributes:
        meta: what the index was made for.
        stored: as given.
        info: manifest of the full snapshot.
        at: manifest of what is shown: the full snapshot's, or that of the delta that was applied last.
    """

    def __init__(self, info: SnapshotInfo, stored: Stored, changing: Stored) -> None:
        super().__init__(_view_of(info, stored, changing))
        self.info = info
        self.at = info
        self.stored = stored
        self._routes = [
            Routes(
                stored[f"f{facet}.leaves"],
                stored[f"f{facet}.centroids"],
                stored[f"f{facet}.raws"],
                stored[f"f{facet}.route_offsets"],
                stored[f"f{facet}.route_leaves"],
            )
            for facet in range(info.store.facets)
        ]

    def advance(self, info: SnapshotInfo, segments: Sequence[Segment]) -> None:
        """Show a later delta. Requests wait meanwhile, so they see all of it or nothing.

        Args:
            info: its manifest, of this full snapshot.
            segments: those of its segments that were not applied yet, in order.

        Raises:
            StoreCorruptError: if one is missing.
        """
        assert (info.kind, info.full, info.store) == ("delta", self.info.full, self.meta), "a delta of another snapshot"
        leaves = [self._file(segment) for segment in segments]
        view, facets = self._view, np.arange(self.meta.facets)
        rows = [leaf.astype(np.int64) * len(facets) + facets for leaf in leaves]
        ready = view.members.readied(np.concatenate([np.empty(0, np.int64), *(each.ravel() for each in rows)]))
        with view.lock:
            ready()
            view.items.resize(info.ordinals)
            view.members.ensure_items(info.ordinals)
            for segment, leaf in zip(segments, leaves, strict=True):
                self._add_names(segment)
                self._add_leaves(segment)
                self._apply(segment, leaf)
            if segments:
                for facet in range(self.meta.facets):
                    self._show_routes(facet, segments[-1])
            view.totals = _totals(info, view)
            view.positions = dict(info.offsets)
            view.age(info.landmark, view.aged(info.landmark))
            view.settle()
            self.at = info

    def _file(self, segment: Segment) -> npt.NDArray[np.uint32]:
        """(n, F) the leaves of a segment's items."""
        out = segment.leaf.copy()
        known = segment.ordinals < self.info.ordinals
        at = segment.ordinals[known]
        there = self.stored["state"][at] == ItemState.LIVE
        for facet, routes in enumerate(self._routes):
            present = np.full(len(out), -1, np.int64)
            present[known] = np.where(there, self.stored["leaf"][at, facet].astype(np.int64), -1)
            raws, wishes = segment.raw[:, facet].astype(np.int64), segment.leaf[:, facet].astype(np.int64)
            out[:, facet] = routes.file(raws, wishes, present, segment.vectors[:, facet])
        return out

    def _add_names(self, segment: Segment) -> None:
        """Ids and sets of labels that are not known yet."""
        ids, labels = self._view.ids, self._view.labels
        skip, skip_labels = (np.array([len(ids), len(labels)]) - segment.first).tolist()
        if min(skip, skip_labels) < 0:
            raise StoreCorruptError(f"a segment of snapshot {self.info.full} is missing: ids from {len(ids)} on")
        ids.add_texts(segment.id_lengths[skip:], segment.id_text[int(segment.id_lengths[:skip].sum()) :])
        labels.add(image.read_labels(segment.label_text)[skip_labels:])

    def _add_leaves(self, segment: Segment) -> None:
        for number, facet in enumerate(self._view.facets):
            mine = segment.leaf_facets == number
            leaves = segment.leaf_ids[mine]
            if len(leaves):
                facet.ensure_leaves(int(leaves.max()) + 1)
                facet.set_centroids(leaves, segment.centroids[mine])

    def _apply(self, segment: Segment, leaf: npt.NDArray[np.uint32]) -> None:
        """Items and counters of a segment, items in the leaves (n, F) given."""
        view, ordinals = self._view, segment.ordinals
        items, members = view.items, view.members
        before = items["leaf"][ordinals]
        was, now = items["state"][ordinals] == ItemState.LIVE, segment.state == ItemState.LIVE
        view.set_counters(segment.counted, segment.counters)
        for name in image.ITEM:
            items[name][ordinals] = leaf if name == "leaf" else getattr(segment, name)
        heats = view.heats(ordinals)
        for number, facet in enumerate(view.facets):
            stays = was & now & (before[:, number] == leaf[:, number])
            out, into = was & ~stays, now & ~stays
            members.remove(facet.members.rows(before[out, number]), ordinals[out])
            rows = facet.members.rows(leaf[:, number])
            members.append(rows[into], ordinals[into], segment.vectors[into, number], heats[into])
            members.renew(rows[stays], ordinals[stays], segment.vectors[stays, number], heats[stays])
        live = segment.counted[items["state"][segment.counted] == ItemState.LIVE]
        members.engage(items["leaf"], live, view.heats(live))
        view.hot.touch(ordinals)
        view.hot.touch(segment.counted)

    def _show_routes(self, number: int, last: Segment) -> None:
        """New leaves and routes; of those of an earlier segment, only leaves that hold something."""
        facet, known = self._view.facets[number], self._routes[number]
        new = np.setdiff1d(np.arange(len(facet.leaves)), known.leaves, assume_unique=True)
        alive = facet.sizes()[new] > 0
        raws = np.setdiff1d(np.flatnonzero(facet.routes.lengths), known.raws, assume_unique=True)
        facet.routes.clear(raws)
        if last.complete[0]:
            alive = np.isin(new, last.leaf_ids[last.leaf_facets == number])
            mine = last.route_facets == number
            facet.routes.append(last.route_raws[mine], last.route_leaves[mine])
        if (facet.leaves["alive"][new] != alive).any():
            facet.leaves["alive"][new] = alive
            facet.changes += 1


def _view_of(info: SnapshotInfo, stored: Stored, changing: Stored) -> LiveView:
    """The live view that a full snapshot is."""
    meta = info.store
    totals = Totals(next_leaf=[0] * meta.facets, stream_time_ms=info.stream_time_ms)
    view = LiveView(meta, totals, stored["codewords"], Order(**info.order.model_dump()))
    view.totals, view.landmark = _totals(info, view), info.landmark
    view.positions = dict(info.offsets)
    view.ids.adopt(changing["id_offsets"], changing["id_text"], changing["id_table"], info.ordinals, info.ordinals)
    view.labels.add(image.read_labels(stored["label_text"]))
    view.items.adopt(info.ordinals, **{name: changing[name] for name in image.ITEM + image.COUNTERS})
    view.latest_engagement = int(stored["last_at"].max(initial=0))
    view.members.adopt(*(changing[name] for name in POOL))
    for number, facet in enumerate(view.facets):
        _open_facet(facet, {name: stored[f"f{number}.{name}"] for name in ("leaves", "centroids", "raws")})
        counts = np.diff(stored[f"f{number}.route_offsets"])
        raw_of = np.repeat(stored[f"f{number}.raws"], counts)
        facet.routes = RaggedPool.from_sorted(facet.raw_indices, raw_of, stored[f"f{number}.route_leaves"])
    return view


def _open_facet(facet: FacetView, stored: Stored) -> None:
    leaves = stored["leaves"]
    facet.ensure_leaves(int(leaves.max(initial=-1)) + 1)
    facet.leaves["alive"][leaves] = True
    facet.set_centroids(leaves, stored["centroids"])


def _totals(info: SnapshotInfo, view: LiveView) -> Totals:
    return Totals(
        next_ordinal=info.ordinals,
        next_leaf=[len(facet.leaves) for facet in view.facets],
        stream_time_ms=info.stream_time_ms,
        items_live=info.items_live,
        journal_seq=info.journal_seq,
    )
