"""What retrieval reads: the live view of a writer, or a store opened beside one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import is_
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from indexer.counters import decayed_counts
from indexer.hot import Hot
from indexer.keys import ItemState
from indexer.labels import Allowed, Filter
from indexer.packed import Packed
from indexer.retrieval import vote_kernels
from indexer.retrieval.request import Centroids, Pool, Served, Straight
from indexer.routing import nearest_of
from indexer.view import LiveView
from schemas.store import StoreMeta

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

LIVE = int(ItemState.LIVE)


@dataclass(frozen=True, slots=True)
class Located:
    """Live items: ordinals (n,), leaves (n, F), vectors (n, F, d) float32; ``missing`` are ids that are not live."""

    ordinals: I64
    leaves: I64
    vectors: F32
    missing: list[str]


class IndexReader(Protocol):
    """Read access to one index."""

    meta: StoreMeta

    def frozen(self) -> AbstractContextManager[object]:
        """While it is entered, all calls answer from one state: no split or merge comes between them. Keep it short."""
        ...

    def locate(self, item_ids: Sequence[str]) -> Located:
        """Find items by id."""
        ...

    def ordinals(self, item_ids: Sequence[str]) -> I64:
        """(n,) ordinals, -1 where an id was never seen."""
        ...

    def enter(self, vectors: F32, raws: npt.NDArray[np.uint32]) -> I64:
        """(n, F) leaves that new items would enter, -1 where their raw index leads nowhere yet.

        ``vectors`` are (n, F, d), ``raws`` (n, F).
        """
        ...

    def centroids(self) -> Centroids:
        """All live leaves."""
        ...

    def serve(self, facets: I64, leaves: I64, skip: I64) -> tuple[Served, I64]:
        """The arrays to read leaves from, and ``skip`` by their ordinals, -1 where they are in none of the leaves.

        Args:
            facets: (n,) facets of what will be read.
            leaves: (n,) leaf ids.
            skip: (m,) ordinals that will be passed over.
        """
        ...

    def straight(self, *, neighbours: bool) -> Straight | None:
        """What answers are computed from in one call; None where leaves have to be fetched first.

        Args:
            neighbours: whether triggers vote for other leaves than their own.
        """
        ...

    def allowed(self, wanted: Filter) -> Allowed:
        """Which sets of labels pass a filter, by their numbers in :attr:`Served.labels`."""
        ...

    def hot(self) -> Hot:
        """The hot list; while it is :meth:`frozen`."""
        ...

    def members(self, facet: int, leaf: int, limit: int) -> I64:
        """The first ``limit`` members of a posting list in its order."""
        ...

    def vectors(self, facet: int, ordinals: I64) -> F32:
        """(n, d) facet embeddings of live items."""
        ...

    def worth(self, ordinals: I64) -> F32 | None:
        """(n,) what items are worth by the model's own prior, in units of similarity; None where it has none."""
        ...

    def engagement(self, ordinals: I64, window: int, now_ms: int) -> npt.NDArray[np.float64]:
        """(n,) decayed engagement counts of one window."""
        ...

    def created_at(self, ordinals: I64) -> I64:
        """(n,) epoch milliseconds."""
        ...

    def item_ids(self, ordinals: I64) -> list[str]:
        """(n,) item ids."""
        ...


class ViewReader:
    """Reads the live view; each call is consistent in itself, several inside :meth:`frozen`."""

    def __init__(self, view: LiveView) -> None:
        self._view = view
        self.meta = view.meta
        self._centroids: tuple[tuple[int, ...], Centroids] | None = None
        self._table: tuple[Centroids, Packed] | None = None
        self._straight: tuple[int, tuple[npt.NDArray[Any], ...], Packed] | None = None

    def frozen(self) -> AbstractContextManager[object]:
        """See :class:`IndexReader`; the writer waits meanwhile, other readers do not."""
        return self._view.lock.shared()

    def locate(self, item_ids: Sequence[str]) -> Located:
        """See :class:`IndexReader`."""
        view = self._view
        items, pool = view.items, view.members
        ordinals = view.ordinals_of(item_ids)
        leaves = np.empty((len(ordinals), self.meta.facets), np.int64)
        vectors = np.empty((*leaves.shape, self.meta.dim), np.float32)
        count = vote_kernels.locate(
            ordinals, LIVE, items["state"], items["leaf"], pool.start, pool.place, pool.bits, leaves, vectors
        )
        missing: list[str] = []
        if count < len(item_ids):
            found = set(ordinals[:count].tolist())
            asked = zip(item_ids, view.ordinals_of(item_ids).tolist(), strict=True)
            missing = [item_id for item_id, ordinal in asked if ordinal not in found]
        return Located(ordinals[:count], leaves[:count], vectors[:count], missing)

    def ordinals(self, item_ids: Sequence[str]) -> I64:
        """See :class:`IndexReader`."""
        return self._view.ordinals_of(item_ids)

    def enter(self, vectors: F32, raws: npt.NDArray[np.uint32]) -> I64:
        """See :class:`IndexReader`."""
        out = np.full(raws.shape, -1, np.int64)
        for number, facet in enumerate(self._view.facets):
            candidates, counts = facet.routes.gather(raws[:, number].astype(np.int64))
            led = np.flatnonzero(counts)
            out[led, number] = nearest_of(
                vectors[led, number], facet.leaves["centroid"], candidates.astype(np.int64), counts[led]
            )
        return out

    def centroids(self) -> Centroids:
        """See :class:`IndexReader`."""
        facets = self._view.facets
        changes = tuple(facet.changes for facet in facets)
        known = self._centroids
        if known is None or known[0] != changes:
            alive = [facet.alive() for facet in facets]
            columns = [(leaves, facet.leaves["centroid"][leaves]) for leaves, facet in zip(alive, facets, strict=True)]
            known = self._centroids = changes, Centroids.of(columns)
        return known[1]

    def serve(self, facets: I64, leaves: I64, skip: I64) -> tuple[Served, I64]:
        """See :class:`IndexReader`."""
        view, items, pool = self._view, self._view.items, self._view.members
        view.reads.count(facets, leaves)
        arrays = Pool(
            pool.start, pool.length, pool.ordered, pool.ordinal, pool.heat, pool.bits, pool.place,
            items["leaf"], items["created_at"], items["labels"], items["last_at"], items["epochs"], items["decayed"],
        )  # fmt: skip
        impact = view.impact
        return Served(arrays, impact.learned, impact.window, view.landmark, view.latest_engagement), skip

    def straight(self, *, neighbours: bool) -> Straight:
        """See :class:`IndexReader`."""
        view, pool = self._view, self._view.members
        mine = (
            pool.start, pool.length, pool.ordered, pool.ordinal, pool.heat, pool.bits, pool.place,
            *view.ids.arrays(), view.reads.counts,
        )  # fmt: skip
        known, impact = self._straight, view.impact
        if known is None or known[0] != view.items.changes or not all(map(is_, known[1], mine)):
            items = view.items
            theirs = (items[name] for name in ("leaf", "created_at", "labels", "last_at", "epochs", "decayed"))
            packed = Packed((*mine[:7], *theirs, *mine[7:10], items["state"], mine[10]))
            known = self._straight = items.changes, mine, packed
        centroids = self.centroids() if neighbours else Centroids.none(pool.facets)
        table = self._table  # another thread may put another one there
        if table is None or table[0] is not centroids:
            table = self._table = centroids, Packed(centroids)
        return Straight(
            known[2], table[1], len(centroids.leaf), len(pool.ordinal), pool.facets,
            impact.learned, impact.window, view.landmark, view.latest_engagement,
        )  # fmt: skip

    def allowed(self, wanted: Filter) -> Allowed:
        """See :class:`IndexReader`."""
        return self._view.labels.allowed(wanted)

    def hot(self) -> Hot:
        """See :class:`IndexReader`."""
        return self._view.hot.shown()

    def members(self, facet: int, leaf: int, limit: int) -> I64:
        """See :class:`IndexReader`."""
        with self.frozen():
            pool = self._view.members
            row = leaf * pool.facets + facet
            ordered, members = int(pool.ordered[row]), pool.row(row)
        return np.concatenate([members[ordered:][::-1], members[:ordered]])[:limit].astype(np.int64)

    def vectors(self, facet: int, ordinals: I64) -> F32:
        """See :class:`IndexReader`."""
        with self.frozen():
            return self._view.vectors(ordinals, facet).astype(np.float32)

    def worth(self, ordinals: I64) -> F32 | None:
        """See :class:`IndexReader`."""
        with self.frozen():
            return self._view.heats(ordinals) if self._view.impact.learned else None

    def engagement(self, ordinals: I64, window: int, now_ms: int) -> npt.NDArray[np.float64]:
        """See :class:`IndexReader`."""
        with self.frozen():
            rows = self._view.counters(ordinals)
        return decayed_counts(rows, now_ms, self.meta.half_lives_s)[:, window]

    def created_at(self, ordinals: I64) -> I64:
        """See :class:`IndexReader`."""
        with self.frozen():
            return np.asarray(self._view.items["created_at"][ordinals], np.int64)

    def item_ids(self, ordinals: I64) -> list[str]:
        """See :class:`IndexReader`."""
        return self._view.ids.of(ordinals)
