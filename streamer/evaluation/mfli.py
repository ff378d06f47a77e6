"""Retrieval from the index, as a system among others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from indexer.retrieval.retrieve import retrieve_many
from streamer.evaluation.system import I32, Found, Questions

if TYPE_CHECKING:
    from schemas.config import RetrievalConfig
    from streamer.evaluation.index import LiveIndex


class Mfli:
    """Retrieval from the index.

    Args:
        name: in the report.
        live: the index.
        settings: how a request is answered; ``k`` is given with each.
        prior: how much of the prior scores have besides similarity, the model's own or the configured one; 0: none.
            Lists are read in their order of impact either way.
        seed: of multinomial selection.
    """

    def __init__(
        self, name: str, live: LiveIndex, settings: RetrievalConfig, prior: float = 1.0, seed: int = 0
    ) -> None:
        self.name = name
        self.nested = settings.vote_share == settings.hot_share == 0  # shares are of k
        self._live = live
        weights = ("prior_weight", "engagement_weight", "freshness_weight")
        self._settings = settings.model_copy(update={each: prior * getattr(settings, each) for each in weights})
        self._seed = seed

    def answer(self, asked: Questions, k: int) -> Found:
        """See :class:`streamer.evaluation.system.System`."""
        settings = self._settings.model_copy(update={"k": k})
        triggers = [self._chosen(rows[rows >= 0]) for rows in asked.triggers]
        requests = self._live.requests(triggers, asked.seen, self._seed)
        rows = np.full((len(asked), k), -1, np.int32)
        scored = np.empty(len(asked), np.int64)
        for at, found in enumerate(retrieve_many(self._live.reader, requests, settings, asked.now_ms)):
            rows[at, : len(found.ordinals)] = self._live.rows(found.ordinals)
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
        facets: F.
        seed: of the draw.
    """

    def __init__(self, name: str, live: LiveIndex, settings: RetrievalConfig, facets: int, seed: int) -> None:
        super().__init__(name, live, settings, seed=seed)
        self._most = max(1, settings.indices // facets)

    def _chosen(self, triggers: I32) -> I32:
        rng = np.random.default_rng([self._seed, *triggers.tolist()])
        return triggers if len(triggers) <= self._most else rng.choice(triggers, self._most, replace=False)
