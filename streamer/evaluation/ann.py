"""Multi-ANN: one HNSW graph a facet, searched once for each trigger; the union is kept, or reranked with the prior.

A graph is built anew at every refresh; items that come in between are added, those that left are passed over. Distances
computed on the way through a graph are not counted as items scored, which flatters it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamer.evaluation.system import F32, I64, Found, News, Questions, pack, top
from streamer.evaluation.union_kernels import union

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel
    from streamer.evaluation.embeddings import Embeddings
    from streamer.evaluation.past import Past
    from streamer.evaluation.prior import Gains, Worth

_LINKS: Final = 16
_BUILD_BREADTH: Final = 80
_SEARCH_BREADTH: Final = 64


class Graphs:
    """HNSW graphs of the pool.

    Args:
        past: the pool.
        embeddings: what is indexed.
        worth: where given, what an item is worth when it is added becomes one dimension more, so that the inner product
            is similarity plus prior.
    """

    def __init__(self, past: Past, embeddings: Embeddings, worth: Worth | None = None) -> None:
        self._past = past
        self._embeddings = embeddings
        self._worth = worth
        self._build()

    def follow(self, news: News) -> None:
        """See :class:`streamer.evaluation.system.Follower`."""
        if len(news.arrived):
            self._place_of[news.arrived] = -1
            self._add(news.arrived)

    def refresh(self, model: FrozenModel) -> None:  # noqa: ARG002  # the embeddings went over to it before
        """See :class:`streamer.evaluation.system.Follower`."""
        self._build()

    def search(self, triggers: F32, fetch: int) -> tuple[I64, F32]:
        """The neighbours of every trigger in every facet.

        Args:
            triggers: (t, F, d).
            fetch: of each.

        Returns:
            (t, F * fetch) item rows, -1 where there are fewer, and similarities; with ``worth`` the prior included.
        """
        found, scores = [], []
        for facet, graph in enumerate(self._graphs):
            asked = triggers[:, facet]
            if self._worth is not None:
                asked = np.concatenate([asked, np.ones((len(asked), 1), np.float32)], 1)
            graph.hnsw.efSearch = max(_SEARCH_BREADTH, fetch)
            score, place = graph.search(np.ascontiguousarray(asked), fetch)
            found.append(place)
            scores.append(score)
        place = np.concatenate(found, 1)
        row = self._row_of[place]
        row[(place < 0) | (self._place_of[row] != place)] = -1
        return row, np.concatenate(scores, 1)

    def _build(self) -> None:
        import faiss  # noqa: PLC0415  # an extra

        faiss.omp_set_num_threads(1)
        items = len(self._past.live)
        manifest = self._embeddings.model.manifest
        width = manifest.dim + (self._worth is not None)
        self._graphs: list[Any] = []
        for _ in range(manifest.facets):
            graph = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = _BUILD_BREADTH
            self._graphs.append(graph)
        self._row_of: I64 = np.empty(0, np.int64)
        self._place_of: I64 = np.full(items, -1, np.int64)
        self._add(np.flatnonzero(self._past.live))

    def _add(self, rows: np.ndarray[Any, Any]) -> None:
        if not len(rows):
            return
        vectors = self._embeddings.of(rows)
        self._place_of[rows] = len(self._row_of) + np.arange(len(rows))
        self._row_of = np.concatenate([self._row_of, rows.astype(np.int64)])
        for facet, graph in enumerate(self._graphs):
            added = vectors[:, facet]
            if self._worth is not None:
                added = np.concatenate([added, self._worth.scores[rows][:, None]], 1)
            graph.add(np.ascontiguousarray(added))


class MultiAnn:
    """The union of neighbour lists, cut to the best.

    Args:
        name: in the report.
        past: the pool.
        embeddings: of triggers.
        graphs: searched.
        fetch: how many times more candidates than results are asked for, over all triggers and facets.
        worth: reranks by similarity plus prior; None: by what the graphs say.
    """

    nested = False

    def __init__(
        self, name: str, past: Past, embeddings: Embeddings, graphs: Graphs, fetch: float, worth: Gains | None = None
    ) -> None:
        self.name = name
        self._past = past
        self._embeddings = embeddings
        self._graphs = graphs
        self._fetch = fetch
        self._worth = worth
        self._seen_at: I64 = np.full(len(past.live), -1, np.int64)

    def answer(self, asked: Questions, k: int) -> Found:
        """See :class:`streamer.evaluation.system.System`."""
        lists: list[I64] = [np.empty(0, np.int64)] * len(asked)
        scored = np.zeros(len(asked), np.int64)
        extra = self._extra()
        count = (asked.triggers >= 0).sum(1)
        flat = asked.triggers[asked.triggers >= 0]
        known = self._embeddings.exists(flat)
        of = np.repeat(np.arange(len(asked)), count)
        each = np.bincount(of[known], minlength=len(asked))
        starts = np.concatenate([[0], np.cumsum(each)])
        vectors = self._embeddings.of(flat[known])
        for triggers in np.unique(each[each > 0]).tolist():
            mine = np.flatnonzero(each == triggers)
            places = (starts[mine][:, None] + np.arange(triggers)).ravel()
            fetch = int(np.ceil(self._fetch * k / (triggers * vectors.shape[1])))
            rows, scores = self._graphs.search(vectors[places], fetch)
            rows, scores = rows.reshape(len(mine), -1), scores.reshape(len(mine), -1)
            room = np.empty(rows.shape[1], np.float32)
            for at, request in enumerate(mine.tolist()):
                found, worth = union(rows[at], scores[at], extra, asked.seen[request], self._seen_at, room)
                scored[request] = len(found)
                lists[request] = found[top(worth, k)]
        return Found(pack(lists, k), scored)

    def _extra(self) -> F32:
        if self._worth is not None:
            return self._worth.scores
        return np.where(self._past.live, np.float32(0), np.float32(-np.inf))
