"""Exact search: every item of the pool scored, the ideal that indexes and ANN approach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from streamer.evaluation.system import F32, Found, News, Questions, pack, top

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel
    from streamer.evaluation.embeddings import Embeddings
    from streamer.evaluation.past import Past
    from streamer.evaluation.prior import Gains


class Pool:
    """Vectors of the pool side by side, gathered again when it changed."""

    def __init__(self, past: Past, embeddings: Embeddings) -> None:
        self._past = past
        self._embeddings = embeddings
        self._stale = True
        self._rows: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._facets: list[F32] = []

    def follow(self, news: News) -> None:
        """See :class:`streamer.evaluation.system.Follower`."""
        self._stale = self._stale or bool(len(news.arrived) or len(news.left))

    def refresh(self, model: FrozenModel) -> None:  # noqa: ARG002  # the embeddings went over to it before
        """See :class:`streamer.evaluation.system.Follower`."""
        self._stale = True

    def columns(self) -> tuple[npt.NDArray[np.int64], list[F32]]:
        """Rows (n,), ascending, and for each facet their vectors (d, n)."""
        if self._stale:
            self._stale = False
            self._rows = np.flatnonzero(self._past.live)
            vectors = self._embeddings.of(self._rows)
            self._facets = [np.ascontiguousarray(vectors[:, facet].T) for facet in range(vectors.shape[1])]
        return self._rows, self._facets


class Exact:
    """An item counts by its greatest similarity to any trigger in any facet, plus the prior where one is given.

    Args:
        name: in the report.
        pool: what is searched.
        embeddings: of triggers.
        worth: the prior; None: similarity alone.
    """

    nested = True

    def __init__(self, name: str, pool: Pool, embeddings: Embeddings, worth: Gains | None = None) -> None:
        self.name = name
        self._pool = pool
        self._embeddings = embeddings
        self._worth = worth

    def answer(self, asked: Questions, k: int) -> Found:
        """See :class:`streamer.evaluation.system.System`."""
        rows, facets = self._pool.columns()
        extra = 0 if self._worth is None else self._worth.scores[rows]
        place = np.full(int(rows.max(initial=-1)) + 2, -1, np.int64)
        place[rows] = np.arange(len(rows))
        lists = []
        for triggers, seen in zip(asked.triggers, asked.seen, strict=True):
            known = triggers[triggers >= 0]
            known = known[self._embeddings.exists(known)]
            best = np.full(len(rows), -np.inf if len(known) else 0, np.float32)
            if len(known):
                vectors = self._embeddings.of(known)
                for facet, columns in enumerate(facets):
                    np.maximum(best, (vectors[:, facet] @ columns).max(0), out=best)
            best += extra
            passed = place[seen[seen < len(place)]]
            best[passed[passed >= 0]] = -np.inf
            lists.append(rows[top(best, k)])
        return Found(pack(lists, k), np.full(len(asked), len(rows), np.int64))
