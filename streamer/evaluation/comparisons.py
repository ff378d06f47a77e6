"""One system against another: the ratios that were wished for, with intervals, beside what was found."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamer.evaluation import lineup
from streamer.evaluation.metrics import at_scored, interval, mean
from streamer.evaluation.outcome import CUTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamer.evaluation.report import Study
    from streamer.evaluation.system import F64


@dataclass(frozen=True, slots=True)
class Comparison:
    """A system and what it is compared with.

    Attributes:
        title: in the report.
        ours: system; theirs: the best of these in each figure.
        equal_scored: both are taken where they score as many items as ``theirs`` does by itself.
        rated: whether queries a second are compared, too.
    """

    title: str
    ours: str
    theirs: tuple[str, ...]
    equal_scored: bool = False
    rated: bool = False


_EQUAL_RESULTS: Final = "MFLI + prior vs similarity-only multi-ANN, equal results"
_OVER_FETCHED: Final = "MFLI + prior vs multi-ANN 8x over-fetch + same prior"
_HYBRID: Final = "hybrid MFLI vs best of popularity and item-kNN"
_HYBRIDS: Final = "hybrid MFLI vs hybrid multi-ANN 2x"
_CODES: Final = "co-trained codes vs post-hoc RQ at equal items scored"
_REFRESH: Final = "refreshed vs frozen, exact similarity"
_FACETS: Final = "three facets vs one at equal items scored"
_IDEAL: Final = "MFLI + prior vs exact search + prior"
_LISTS: Final = "MFLI + prior vs best of popularity and item-kNN"

COMPARISONS: Final = (
    Comparison(_EQUAL_RESULTS, lineup.MFLI_PRIOR, (lineup.ANN,)),
    Comparison(_OVER_FETCHED, lineup.MFLI_PRIOR, (lineup.ANN_PRIOR.format(8),), rated=True),
    Comparison("MFLI + prior vs ANN with the prior as a dimension", lineup.MFLI_PRIOR, (lineup.ANN_DIMENSION,)),
    Comparison(_HYBRID, lineup.HYBRID, (lineup.POPULAR, lineup.DECAYED, lineup.KNN)),
    Comparison(_HYBRIDS, lineup.HYBRID, (lineup.HYBRID_ANN,)),
    Comparison(_CODES, lineup.MFLI_PRIOR, (lineup.RQ,), equal_scored=True),
    Comparison(_REFRESH, lineup.EXACT, (lineup.EXACT_FROZEN,)),
    Comparison(_FACETS, lineup.MFLI_PRIOR, (lineup.ONE_FACET,), equal_scored=True),
    Comparison("MFLI + prior vs exact search, similarity only", lineup.MFLI_PRIOR, (lineup.EXACT,)),
    Comparison(_IDEAL, lineup.MFLI_PRIOR, (lineup.EXACT_PRIOR,)),
    Comparison(_LISTS, lineup.MFLI_PRIOR, (lineup.POPULAR, lineup.DECAYED, lineup.KNN)),
)

ABLATIONS: Final = (
    Comparison("rebalancing", lineup.UNBALANCED, (lineup.MFLI_PRIOR,), equal_scored=True),
    Comparison("index selection: drawn by votes", lineup.MULTINOMIAL, (lineup.FEW,)),
    Comparison("index selection: at random", lineup.UNSELECTED, (lineup.FEW,)),
    Comparison("facets 3 -> 1, the first one's index", lineup.ONE_FACET, (lineup.MFLI_PRIOR,), equal_scored=True),
    Comparison("facets 3 -> 1, trained alone", lineup.TRAINED_ALONE, (lineup.MFLI_PRIOR,), equal_scored=True),
    Comparison("delayed start", lineup.EAGER, (lineup.MFLI_PRIOR,), equal_scored=True),
    Comparison("prior", lineup.MFLI, (lineup.MFLI_PRIOR,)),
    Comparison("refresh", lineup.FROZEN, (lineup.MFLI_PRIOR,), equal_scored=True),
)

RATE: Final = "q/s"
WISHES: Final[dict[str, dict[str, dict[str, float]]]] = {
    "globo": {
        _EQUAL_RESULTS: {"all@100": 0.35, "fresh@100": 0.75, "all@500": 0.03},
        _OVER_FETCHED: {"all@100": 0.12, "fresh@100": 0.25, RATE: 5.0},
        _HYBRID: {"all@100": 0.01, "fresh@100": 0.03, "tail@100": 0.0},
        _HYBRIDS: {"all@100": 0.03, "fresh@100": 0.10},
        _CODES: {"all@100": 0.0, "fresh@100": -0.02, "tail@100": 0.05},
        _REFRESH: {"all@100": 1.0},
        _FACETS: {"all@100": 0.03},
    },
    "movielens": {_IDEAL: {"all@100": -0.05}, _LISTS: {"all@100": 0.0}},
}
"""By data set and comparison: at least so much more, relative, of Recall@100 or @500 of a slice; ratio of rates."""


def comparisons(study: Study, data_set: str) -> dict[str, list[dict[str, Any]]]:
    """``wished`` and ``ablations``, those whose systems took part."""
    wishes = WISHES.get(data_set, {})
    return {
        "wished": [
            _compare(study, each, wishes.get(each.title, {})) for each in COMPARISONS if _took_part(study, each)
        ],
        "ablations": [_compare(study, each, {}) for each in ABLATIONS if _took_part(study, each)],
    }


def _took_part(study: Study, comparison: Comparison) -> bool:
    return comparison.ours in study.answers and all(name in study.answers for name in comparison.theirs)


def _compare(study: Study, comparison: Comparison, wishes: Mapping[str, float]) -> dict[str, Any]:
    figures = []
    for slice_, cut in itertools.product(("all", "fresh", "tail", "cold"), CUTS):
        mask, wanted = study.slices.masks[slice_], wishes.get(f"{slice_}@{cut}")
        ours = _hits(study, comparison, comparison.ours, cut)
        against = {name: _hits(study, comparison, name, cut) for name in comparison.theirs}
        best = max(against, key=lambda name: mean(against[name], mask))
        gain = _gain(mean(ours, mask), mean(against[best], mask))
        with np.errstate(divide="ignore", invalid="ignore"):
            samples = study.users.means(ours, mask) / study.users.means(against[best], mask) - 1
        figures.append(
            {
                "slice": slice_,
                "cut": cut,
                "ours": mean(ours, mask),
                "theirs": mean(against[best], mask),
                "best_of_theirs": best,
                "gain": gain,
                "interval": interval(np.where(np.isfinite(samples), samples, np.nan)),
                "wanted": wanted,
                "met": None if wanted is None or np.isnan(gain) else bool(gain >= wanted),
            }
        )
    return {
        "title": comparison.title,
        "ours": comparison.ours,
        "theirs": list(comparison.theirs),
        "equal_scored": comparison.equal_scored,
        "figures": figures,
        "rate": _rate(study, comparison, wishes.get(RATE)),
    }


def _gain(ours: float, theirs: float) -> float:
    return ours / theirs - 1 if theirs else float("nan")


def _hits(study: Study, comparison: Comparison, name: str, cut: int) -> F64:
    if not comparison.equal_scored:
        return study.answers[name].hits[cut]
    level = study.answers[comparison.theirs[0]].scored[cut]
    curve = [answers for each, answers in study.answers.items() if each == name or lineup.is_on_curve(each, name)]
    return at_scored(curve, cut, level)


def _rate(study: Study, comparison: Comparison, wanted: float | None) -> dict[str, Any] | None:
    if not comparison.rated:
        return None
    spent: Mapping[str, list[float]] = {
        name: [sum(outcome.records[name].seconds[CUTS[0]][part] for outcome in study.outcomes) for part in (0, 1)]
        for name in (comparison.ours, comparison.theirs[0])
    }
    rates = [count / seconds if seconds else float("nan") for seconds, count in spent.values()]
    ratio = rates[0] / rates[1]
    return {
        "ours": rates[0],
        "theirs": rates[1],
        "ratio": ratio,
        "wanted": wanted,
        "met": None if wanted is None else ratio >= wanted,
    }
