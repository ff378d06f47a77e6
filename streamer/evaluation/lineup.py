"""Who takes part: every system of the comparison, over lines of models that differ in one thing each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from streamer.evaluation.ann import Graphs, MultiAnn
from streamer.evaluation.coding import Coding, CoTrained, PostHoc
from streamer.evaluation.embeddings import Embeddings
from streamer.evaluation.exact import Exact, Pool
from streamer.evaluation.index import Lineup, LiveIndex
from streamer.evaluation.learner import FirstOnly, Fixed, Learner, Trained
from streamer.evaluation.lists import Clicked, Halves, Listed, Newest
from streamer.evaluation.mfli import Mfli, Unselective
from streamer.evaluation.neighbours import CoEngaged, Histories
from streamer.evaluation.prior import Lighter, Worth
from streamer.evaluation.replay import Line, Team

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from model_runtime.runtime import FrozenModel
    from model_runtime.training.data import TrainingLog
    from schemas.config import RetrievalConfig
    from schemas.evaluation import EvaluationSettings
    from streamer.evaluation.past import Past
    from streamer.evaluation.system import Follower, System

POPULAR: Final = "popularity, last hour"
DECAYED: Final = "popularity, decayed"
RECENT: Final = "recency"
PRIOR: Final = "prior alone"
KNN: Final = "item-kNN"
EXACT: Final = "exact search"
EXACT_PRIOR: Final = "exact search + prior"
ANN: Final = "multi-ANN"
ANN_PRIOR: Final = "multi-ANN {}x + prior"
ANN_DIMENSION: Final = "ANN with the prior as a dimension"
RQ: Final = "post-hoc RQ + prior"
ONE_FACET: Final = "one facet (VQ) + prior"
MFLI: Final = "MFLI"
MFLI_PRIOR: Final = "MFLI + prior"
HYBRID: Final = "hybrid MFLI"
HYBRID_ANN: Final = "hybrid multi-ANN 2x"
UNBALANCED: Final = "MFLI + prior, not rebalanced"
FEW: Final = "MFLI + prior, {} leaves"
MULTINOMIAL: Final = "MFLI + prior, {} leaves drawn by votes"
UNSELECTED: Final = "MFLI + prior, {} leaves at random"
FROZEN: Final = "MFLI + prior, never refreshed"
EXACT_FROZEN: Final = "exact search, never refreshed"
HYBRID_FROZEN: Final = "hybrid MFLI, never refreshed"
EAGER: Final = "MFLI + prior, no delayed start"
TRAINED_ALONE: Final = "MFLI + prior, one facet trained alone"


def on_curve(name: str, leaves: int, scan: int) -> str:
    """Name of a system on the curve of recall against items scored."""
    return f"{name}, {leaves} leaves x {scan}"


def is_on_curve(each: str, name: str) -> bool:
    """Whether a system is on the curve of another."""
    own = each.removeprefix(f"{name}, ")
    return own != each and re.fullmatch(r"\d+ leaves x \d+", own) is not None


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


def lines(stage: Stage, model: FrozenModel | None, progress: Callable[[int], None], *, full: bool = True) -> list[Line]:
    """The comparison.

    Args:
        stage: shared by all.
        model: evaluated as it is; None: models are trained and refreshed.
        progress: told the steps of training.
        full: with peers and ablations; else the index, exact search and popularity alone.
    """
    training = stage.settings.training.model_copy(update={"seed": stage.seed})
    learner: Learner = Fixed(model) if model is not None else Trained(training, progress)
    if not full:
        return [Line("index", learner, lambda past, first: _small(stage, past, first))]
    out = [Line("main", learner, lambda past, first: _main(stage, past, first))]
    if model is not None:
        return out
    eager = training.model_copy(update={"start_share": 0.0, "layer_share": 0.0})
    single = training.model_copy(update={"labels": training.labels[:1]})
    frozen = FirstOnly(learner)
    return [
        *out,
        Line("frozen", frozen, lambda past, first: _frozen(stage, past, first)),
        Line("eager", Trained(eager, progress), lambda past, first: _alone(stage, past, first, EAGER, "eager")),
        Line(
            "single", Trained(single, progress), lambda past, first: _alone(stage, past, first, TRAINED_ALONE, "single")
        ),
    ]


def _small(stage: Stage, past: Past, model: FrozenModel) -> Team:
    settings = stage.settings.retrieval
    embeddings, worth = Embeddings(past, stage.log.item_ids, model), Worth(past, settings, model)
    pool = Pool(past, embeddings)
    index = stage.index(past, embeddings, "index", CoTrained())
    systems: list[System] = [
        Listed(DECAYED, Clicked(past, -1)),
        Exact(EXACT, pool, embeddings),
        Exact(EXACT_PRIOR, pool, embeddings, worth),
        *_with_and_without(index, stage),
    ]
    return Team([embeddings, worth, pool, index], systems, {MFLI: index})


def _main(stage: Stage, past: Past, model: FrozenModel) -> Team:
    settings = stage.settings
    embeddings, worth = Embeddings(past, stage.log.item_ids, model), Worth(past, settings.retrieval, model)
    pool, histories = Pool(past, embeddings), Histories(stage.log)
    graphs, raised = Graphs(past, embeddings), Graphs(past, embeddings, worth)
    index = stage.index(past, embeddings, "index", CoTrained())
    fitted = stage.index(past, embeddings, "post-hoc", PostHoc(stage.seed))
    first = stage.index(past, embeddings, "one-facet", CoTrained(1))
    unbalanced = stage.index(past, embeddings, "unbalanced", CoTrained(), balanced=False)
    alike, with_prior = _with_and_without(index, stage)
    lighter = Lighter(worth, settings.hybrid_prior)
    twice = MultiAnn(ANN_PRIOR.format(2), past, embeddings, graphs, 2, lighter)
    systems: list[System] = [
        Listed(POPULAR, Clicked(past, None)),
        Listed(DECAYED, Clicked(past, -1)),
        Listed(RECENT, Newest(past)),
        Listed(PRIOR, worth),
        CoEngaged(KNN, past, histories, smoothing=settings.smoothing),
        Exact(EXACT, pool, embeddings),
        Exact(EXACT_PRIOR, pool, embeddings, worth),
        MultiAnn(ANN, past, embeddings, graphs, 2),
        *(
            MultiAnn(ANN_PRIOR.format(f"{fetch:g}"), past, embeddings, graphs, fetch, worth)
            for fetch in settings.fetches
        ),
        MultiAnn(ANN_DIMENSION, past, embeddings, raised, 2),
        alike,
        with_prior,
        *_curve(MFLI_PRIOR, index, stage),
        Mfli(RQ, fitted, settings.retrieval),
        *_curve(RQ, fitted, stage),
        Mfli(ONE_FACET, first, _as_many_leaves(settings.retrieval, model.manifest.facets)),
        *_curve(ONE_FACET, first, stage, model.manifest.facets),
        Mfli(UNBALANCED, unbalanced, settings.retrieval),
        *_curve(UNBALANCED, unbalanced, stage),
        Halves(HYBRID, worth, Mfli(MFLI_PRIOR, index, settings.retrieval, settings.hybrid_prior)),
        Halves(HYBRID_ANN, worth, twice),
        *_selections(index, stage, model.manifest.facets),
    ]
    followers: list[Follower] = [embeddings, worth, pool, histories, graphs, raised, index, fitted, first, unbalanced]
    return Team(followers, systems, {MFLI: index, RQ: fitted, ONE_FACET: first, UNBALANCED: unbalanced})


def _frozen(stage: Stage, past: Past, model: FrozenModel) -> Team:
    embeddings, worth = Embeddings(past, stage.log.item_ids, model), Worth(past, stage.settings.retrieval, model)
    pool = Pool(past, embeddings)
    index = stage.index(past, embeddings, "frozen", CoTrained())
    systems: list[System] = [
        Exact(EXACT_FROZEN, pool, embeddings),
        Mfli(FROZEN, index, stage.settings.retrieval),
        *_curve(FROZEN, index, stage),
        Halves(HYBRID_FROZEN, worth, Mfli(FROZEN, index, stage.settings.retrieval, stage.settings.hybrid_prior)),
    ]
    return Team([embeddings, worth, pool, index], systems, {FROZEN: index})


def _alone(stage: Stage, past: Past, model: FrozenModel, name: str, place: str) -> Team:
    """The index alone, of a model that was trained differently."""
    alone = len(stage.settings.training.labels) // model.manifest.facets
    embeddings = Embeddings(past, stage.log.item_ids, model)
    index = stage.index(past, embeddings, place, CoTrained())
    systems: list[System] = [
        Mfli(name, index, _as_many_leaves(stage.settings.retrieval, alone)),
        *_curve(name, index, stage, alone),
    ]
    return Team([embeddings, index], systems, {name: index})


def _with_and_without(index: LiveIndex, stage: Stage) -> tuple[Mfli, Mfli]:
    settings = stage.settings.retrieval
    return Mfli(MFLI, index, settings, 0.0), Mfli(MFLI_PRIOR, index, settings)


def _curve(name: str, index: LiveIndex, stage: Stage, alone: int = 1) -> Iterator[System]:
    for probes, leaves, scan in stage.settings.budgets:
        settings = stage.settings.retrieval.model_copy(update={"probes": probes, "indices": leaves, "scan": scan})
        yield Mfli(on_curve(name, leaves, scan), index, _as_many_leaves(settings, alone))


def _as_many_leaves(settings: RetrievalConfig, alone: int) -> RetrievalConfig:
    """For an index of one facet where others have so many: the triggers vote for as many leaves of it as of all."""
    return settings.model_copy(update={"probes": alone * (1 + settings.probes) - 1})


def _selections(index: LiveIndex, stage: Stage, facets: int) -> Sequence[System]:
    """Ways to choose few leaves; with as many as triggers vote for there would be nothing to choose."""
    few = stage.settings.selection_indices
    settings = stage.settings.retrieval.model_copy(update={"indices": few, "probes": 0})
    drawn = settings.model_copy(update={"selection": "multinomial"})
    return [
        Mfli(FEW.format(few), index, settings),
        Mfli(MULTINOMIAL.format(few), index, drawn, seed=stage.seed),
        Unselective(UNSELECTED.format(few), index, settings, facets, stage.seed),
    ]
