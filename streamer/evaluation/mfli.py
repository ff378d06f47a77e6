"""Retrieval from the index, as a system among others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from indexer.retrieval.retrieve import retrieve_many
from streamer.evaluation.system import I32, Found, Questions, top

if TYPE_CHECKING:
    from schemas.config import RetrievalConfig
    from streamer.evaluation.index import LiveIndex
    from streamer.evaluation.prior import Gains


class Mfli:
    """Retrieval from the index.

    Args:
        name: in the report.
        live: the index.
        settings: how a request is answered; ``k`` is given with each.
        worth: the prior that scores have besides similarity; None: similarity alone. Lists are read in their order of
            impact either way. The index itself knows the configured prior; with a learned one all that it scanned is
            scored again here.
        seed: of multinomial selection.
    """

    def __init__(
        self, name: str, live: LiveIndex, settings: RetrievalConfig, worth: Gains | None = None, seed: int = 0
    ) -> None:
        self.name = name
        self.nested = settings.vote_share == 0  # shares are of k
        self._live = live
        self._bare = settings.model_copy(update={"engagement_weight": 0.0, "freshness_weight": 0.0})
        self._settings = self._bare if worth is None else settings
        self._worth = worth
        self._seed = seed

    def answer(self, asked: Questions, k: int) -> Found:
        """See :class:`streamer.evaluation.system.System`."""
        again = self._worth if self._worth is not None and self._worth.rescored else None
        settings = self._settings.model_copy(update={"k": k})
        if again is not None:
            settings = self._bare.model_copy(update={"k": max(k, settings.scan * settings.indices)})
        requests = [
            self._live.request(self._chosen(triggers[triggers >= 0]), seen, self._seed)
            for triggers, seen in zip(asked.triggers, asked.seen, strict=True)
        ]
        rows = np.full((len(asked), k), -1, np.int32)
        scored = np.empty(len(asked), np.int64)
        for at, found in enumerate(retrieve_many(self._live.reader, requests, settings, asked.now_ms)):
            mine = self._live.rows(found.ordinals)
            if again is not None:
                mine = mine[top(found.scores + again.scores[mine], k)]
            rows[at, : len(mine)] = mine[:k]
            scored[at] = found.scored
        return Found(rows, scored)

    def _chosen(self, triggers: I32) -> I32:
        return triggers


class Unselective(Mfli):
    """Instead of choosing leaves by votes: all leaves of as many triggers, drawn at random, as make K of them.

    Args:
        name: in the report.
        live: the index.
        settings: ``indices`` is K.
        worth: as of :class:`Mfli`.
        facets: F.
        seed: of the draw.
    """

    def __init__(
        self, name: str, live: LiveIndex, settings: RetrievalConfig, worth: Gains, facets: int, seed: int
    ) -> None:
        super().__init__(name, live, settings, worth, seed)
        self._most = max(1, settings.indices // facets)

    def _chosen(self, triggers: I32) -> I32:
        rng = np.random.default_rng([self._seed, *triggers.tolist()])
        return triggers if len(triggers) <= self._most else rng.choice(triggers, self._most, replace=False)
