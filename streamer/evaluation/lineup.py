"""Who takes part: every system of the comparison, over lines of models that differ in one thing each."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from streamer.evaluation.ann import MultiAnn
from streamer.evaluation.bench import Bench, Stage
from streamer.evaluation.coding import Coding, CoTrained, PostHoc
from streamer.evaluation.exact import Exact
from streamer.evaluation.learner import FirstOnly, Fixed, Learner, Trained
from streamer.evaluation.lists import Clicked, Halves, Listed, Newest
from streamer.evaluation.mfli import Mfli, Unselective
from streamer.evaluation.neighbours import CoEngaged
from streamer.evaluation.replay import Line, Team

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel
    from schemas.config import RetrievalConfig
    from schemas.evaluation import EvaluationSettings
    from streamer.evaluation.index import LiveIndex
    from streamer.evaluation.past import Past
    from streamer.evaluation.system import System

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
class Part:
    """Systems that are replayed in one process, as they share what is costly, or are timed against each other.

    Attributes:
        name: of the part.
        line: of models.
        cost: of asking and following, roughly, in processor seconds for two days of news and 10,000 requests.
        systems: makes them.
    """

    name: str
    line: str
    cost: float
    systems: Callable[[Bench], list[System]]


LEARNING: Final = {"main": 170.0, "frozen": 90.0, "eager": 190.0, "single": 90.0, "index": 170.0}
"""Cost of each line's models, as :attr:`Part.cost`, in each process that needs them."""
BEGIN_WITH: Final = {"frozen": "main"}
"""Lines that use the first model of another one, and learn nothing besides."""


def parts(*, trained: bool = True, full: bool = True) -> list[Part]:
    """The parts of the comparison, in the order of the report.

    Args:
        trained: models are trained here; else one is evaluated as it is, and there is but one line.
        full: with peers and ablations; else the index, exact search and popularity alone.
    """
    if not full:
        return [Part("index", "index", 80, _small)]
    main = [
        Part("lists", "main", 95, _lists),
        Part("graphs", "main", 175, _graphs),
        Part("raised graphs", "main", 70, _raised),
        Part("budgets", "main", 60, _budgets),
        Part("post-hoc", "main", 65, partial(_rival, RQ, "post-hoc")),
        Part("one facet", "main", 40, _one_facet),
        Part("unbalanced", "main", 45, partial(_rival, UNBALANCED, "unbalanced")),
    ]
    if not trained:
        return main
    return [
        *main,
        Part("frozen", "frozen", 75, _frozen),
        Part("eager", "eager", 57, partial(_alone, EAGER, "eager")),
        Part("single", "single", 43, partial(_alone, TRAINED_ALONE, "single")),
    ]


def lines(
    stage: Stage,
    model: FrozenModel | None,
    progress: Callable[[int], None],
    *,
    full: bool = True,
    chosen: Collection[str] | None = None,
) -> list[Line]:
    """The comparison.

    Args:
        stage: shared by all.
        model: evaluated as it is; None: models are trained and refreshed.
        progress: told the steps of training.
        full: as :func:`parts` takes it.
        chosen: names of the parts that are wanted; None: all.
    """
    by_line: dict[str, list[Part]] = {}
    for part in parts(trained=model is None, full=full):
        if chosen is None or part.name in chosen:
            by_line.setdefault(part.line, []).append(part)
    learners = _learners(stage, model, progress)
    return [Line(line, learners[line], partial(_team, stage, mine)) for line, mine in by_line.items()]


def _learners(stage: Stage, model: FrozenModel | None, progress: Callable[[int], None]) -> dict[str, Learner]:
    """By line."""
    if model is not None:
        return dict.fromkeys(("main", "index"), Fixed(model))
    training = stage.settings.training.model_copy(update={"seed": stage.seed})
    main = Trained(training, progress)
    eager = training.model_copy(update={"start_share": 0.0, "layer_share": 0.0})
    single = training.model_copy(update={"labels": training.labels[:1]})
    return {
        "main": main,
        "index": main,
        "frozen": FirstOnly(main),
        "eager": Trained(eager, progress),
        "single": Trained(single, progress),
    }


def _team(stage: Stage, mine: list[Part], past: Past, model: FrozenModel) -> Team:
    bench = Bench(stage, past, model)
    made = {part.name: part.systems(bench) for part in mine}
    systems = [system for each in made.values() for system in each]
    names = {part: tuple(system.name for system in each) for part, each in made.items()}
    return Team(bench.followers, systems, bench.indexes, names)


def _small(bench: Bench) -> list[System]:
    return [
        Listed(DECAYED, Clicked(bench.past, -1)),
        Exact(EXACT, bench.pool, bench.embeddings),
        Exact(EXACT_PRIOR, bench.pool, bench.embeddings, bench.worth),
        *_with_and_without(bench),
    ]


def _lists(bench: Bench) -> list[System]:
    past, smoothing = bench.past, bench.stage.settings.smoothing
    return [
        Listed(POPULAR, Clicked(past, None)),
        Listed(DECAYED, Clicked(past, -1)),
        Listed(RECENT, Newest(past)),
        Listed(PRIOR, bench.worth),
        CoEngaged(KNN, past, bench.histories, smoothing=smoothing),
        Exact(EXACT, bench.pool, bench.embeddings),
        Exact(EXACT_PRIOR, bench.pool, bench.embeddings, bench.worth),
    ]


def _graphs(bench: Bench) -> list[System]:
    """Approximate search, and the index that is timed against it."""
    past, embeddings, graphs, settings = bench.past, bench.embeddings, bench.graphs, bench.stage.settings
    alike, with_prior = _with_and_without(bench)
    twice = MultiAnn(ANN_PRIOR.format(2), past, embeddings, graphs, 2, bench.lighter)
    return [
        MultiAnn(ANN, past, embeddings, graphs, 2),
        *(
            MultiAnn(ANN_PRIOR.format(f"{fetch:g}"), past, embeddings, graphs, fetch, bench.worth)
            for fetch in settings.fetches
        ),
        alike,
        with_prior,
        _hybrid(bench, HYBRID, _index(bench)),
        Halves(HYBRID_ANN, bench.worth, twice),
    ]


def _raised(bench: Bench) -> list[System]:
    """Approximate search of similarity and prior in one."""
    return [MultiAnn(ANN_DIMENSION, bench.past, bench.embeddings, bench.raised, 2)]


def _budgets(bench: Bench) -> list[System]:
    """The index with other budgets, and ways to choose few leaves."""
    return [*_curve(bench, MFLI_PRIOR, _index(bench)), *_selections(bench)]


def _rival(name: str, place: str, bench: Bench) -> list[System]:
    """An index of the same models that differs in one thing."""
    coding: Coding = PostHoc(bench.stage.seed) if name == RQ else CoTrained()
    index = bench.index(name, place, coding, balanced=name != UNBALANCED)
    return [Mfli(name, index, bench.stage.settings.retrieval), *_curve(bench, name, index)]


def _one_facet(bench: Bench) -> list[System]:
    index, settings = bench.index(ONE_FACET, "one-facet", CoTrained(1)), bench.stage.settings.retrieval
    return [
        Mfli(ONE_FACET, index, _as_many_leaves(settings, bench.facets)),
        *_curve(bench, ONE_FACET, index, bench.facets),
    ]


def _frozen(bench: Bench) -> list[System]:
    settings = bench.stage.settings
    index = bench.index(FROZEN, "frozen", CoTrained())
    return [
        Exact(EXACT_FROZEN, bench.pool, bench.embeddings),
        Mfli(FROZEN, index, settings.retrieval),
        *_curve(bench, FROZEN, index),
        _hybrid(bench, HYBRID_FROZEN, index),
    ]


def _alone(name: str, place: str, bench: Bench) -> list[System]:
    """The index alone, of a model that was trained differently."""
    settings = bench.stage.settings
    alone = len(settings.training.labels) // bench.facets
    index = bench.index(name, place, CoTrained())
    return [Mfli(name, index, _as_many_leaves(settings.retrieval, alone)), *_curve(bench, name, index, alone)]


def _index(bench: Bench) -> LiveIndex:
    """The index that all else is compared with."""
    return bench.index(MFLI, "index", CoTrained())


def _with_and_without(bench: Bench) -> tuple[Mfli, Mfli]:
    index, settings = _index(bench), bench.stage.settings.retrieval
    return Mfli(MFLI, index, settings, 0.0), Mfli(MFLI_PRIOR, index, settings)


def _hybrid(bench: Bench, name: str, index: LiveIndex) -> Mfli:
    """Half of the places for the index's own hot list."""
    settings = bench.stage.settings
    return Mfli(name, index, settings.retrieval.model_copy(update={"hot_share": 0.5}), settings.hybrid_prior)


def _curve(bench: Bench, name: str, index: LiveIndex, alone: int = 1) -> Iterator[System]:
    settings: EvaluationSettings = bench.stage.settings
    for probes, leaves, scan in settings.budgets:
        budget = settings.retrieval.model_copy(update={"probes": probes, "indices": leaves, "scan": scan})
        yield Mfli(on_curve(name, leaves, scan), index, _as_many_leaves(budget, alone))


def _as_many_leaves(settings: RetrievalConfig, alone: int) -> RetrievalConfig:
    """For an index of one facet where others have so many: the triggers vote for as many leaves of it as of all."""
    return settings.model_copy(update={"probes": alone * (1 + settings.probes) - 1})


def _selections(bench: Bench) -> list[System]:
    """Ways to choose few leaves; with as many as triggers vote for there would be nothing to choose."""
    index, seed, few = _index(bench), bench.stage.seed, bench.stage.settings.selection_indices
    settings = bench.stage.settings.retrieval.model_copy(update={"indices": few, "probes": 0})
    drawn = settings.model_copy(update={"selection": "multinomial"})
    return [
        Mfli(FEW.format(few), index, settings),
        Mfli(MULTINOMIAL.format(few), index, drawn, seed=seed),
        Unselective(UNSELECTED.format(few), index, settings, bench.facets, seed),
    ]
