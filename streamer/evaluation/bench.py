"""What the systems of one line of models share, made when a system first asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from streamer.evaluation.ann import Graphs
from streamer.evaluation.embeddings import Embeddings
from streamer.evaluation.exact import Pool
from streamer.evaluation.index import Lineup, LiveIndex
from streamer.evaluation.neighbours import Histories
from streamer.evaluation.prior import Lighter, Worth

if TYPE_CHECKING:
    from pathlib import Path

    from model_runtime.runtime import FrozenModel
    from model_runtime.training.data import TrainingLog
    from schemas.evaluation import EvaluationSettings
    from streamer.evaluation.coding import Coding
    from streamer.evaluation.past import Past
    from streamer.evaluation.system import Follower

Told = TypeVar("Told", bound="Follower")


@dataclass(frozen=True, slots=True)
class Stage:
    """What every team of a run needs.

    Attributes:
        log: the whole log; systems read of it what the news have told.
        scratch: an empty directory.
        seed: of the run.
    """

    log: TrainingLog
    settings: EvaluationSettings
    scratch: Path
    seed: int

    def index(
        self, past: Past, embeddings: Embeddings, name: str, coding: Coding, *, balanced: bool = True
    ) -> LiveIndex:
        """An index in a directory of its own."""
        interval = self.settings.rebalance_s if balanced else None
        lineup = Lineup(self.log.item_ids, self.settings.config(), coding, self.scratch / name, interval)
        return LiveIndex(past, embeddings, lineup)


class Bench:
    """Followers of one line.

    Args:
        stage: of the run.
        past: what they know.
        model: the first one.

    Attributes:
        stage: as given.
        past: as given.
        followers: by name, in the order in which they must be told.
        indexes: those that report their health, by the name under which they do.
        facets: of the line's models.
    """

    def __init__(self, stage: Stage, past: Past, model: FrozenModel) -> None:
        self.stage = stage
        self.past = past
        self.followers: dict[str, Follower] = {}
        self.indexes: dict[str, LiveIndex] = {}
        self.facets: int = model.manifest.facets
        self._model = model
        self.embeddings = self._told("embeddings", Embeddings(past, stage.log.item_ids, model))

    @cached_property
    def worth(self) -> Worth:
        """What every item is worth whoever asks."""
        return self._told("worth", Worth(self.past, self.stage.settings.retrieval, self._model))

    @cached_property
    def lighter(self) -> Lighter:
        """The same as it weighs in the retrieved half of hybrids."""
        return Lighter(self.worth, self.stage.settings.hybrid_prior)

    @cached_property
    def pool(self) -> Pool:
        """Vectors side by side."""
        return self._told("pool", Pool(self.past, self.embeddings))

    @cached_property
    def histories(self) -> Histories:
        """Who engaged what."""
        return self._told("histories", Histories(self.stage.log, self.past.happened))

    @cached_property
    def graphs(self) -> Graphs:
        """HNSW graphs of similarity."""
        return self._told("graphs", Graphs(self.past, self.embeddings))

    @cached_property
    def raised(self) -> Graphs:
        """HNSW graphs with the prior as one dimension more."""
        return self._told("graphs with the prior", Graphs(self.past, self.embeddings, self.worth))

    def index(self, name: str, place: str, coding: Coding, *, balanced: bool = True) -> LiveIndex:
        """An index; the same one for the same name.

        Args:
            name: under which its health is reported.
            place: of its directory.
            coding: facets and codewords.
            balanced: rebalanced now and then.
        """
        if name not in self.indexes:
            made = self.stage.index(self.past, self.embeddings, place, coding, balanced=balanced)
            self.indexes[name] = self._told(f"index of {name}", made)
        return self.indexes[name]

    def _told(self, name: str, follower: Told) -> Told:
        self.followers[name] = follower
        return follower
