"""One system against another: the ratios that were wished for, with intervals, beside what was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamer.evaluation import lineup
from streamer.evaluation.metrics import at_scored, interval, mean
from streamer.evaluation.replay import CUTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamer.evaluation.report import Study
    from streamer.evaluation.system import F64


@dataclass(frozen=True, slots=True)
class Wish:
    """One figure that was wished for.

    Attributes:
        slice_: of the requests.
        cut: of the answers.
        gain: at least so much more than the other, relative.
    """

    slice_: str
    cut: int
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A system and what it is compared with.

    Attributes:
        title: in the report.
        ours: system; theirs: the best of these in each figure.
        wishes: figures.
        equal_scored: both are taken where they score as many items as ``theirs`` does by itself.
        rate: wished ratio of queries a second.
    """

    title: str
    ours: str
    theirs: tuple[str, ...]
    wishes: tuple[Wish, ...]
    equal_scored: bool = False
    rate: float | None = None


_LOOK: Final = tuple(Wish(slice_, cut) for slice_ in ("all", "fresh", "tail", "cold") for cut in CUTS)


def _wishes(**gains: float) -> tuple[Wish, ...]:
    """Every figure, some with a gain: ``all100=0.35`` is Recall@100 over all requests."""
    return tuple(Wish(wish.slice_, wish.cut, gains.get(f"{wish.slice_}{wish.cut}")) for wish in _LOOK)


COMPARISONS: Final = (
    Comparison(
        "MFLI + prior vs similarity-only multi-ANN, equal results",
        lineup.MFLI_PRIOR,
        (lineup.ANN,),
        _wishes(all100=0.35, fresh100=0.75, all500=0.03),
    ),
    Comparison(
        "MFLI + prior vs multi-ANN 8x over-fetch + same prior",
        lineup.MFLI_PRIOR,
        (lineup.ANN_PRIOR.format(8),),
        _wishes(all100=0.12, fresh100=0.25),
        rate=5.0,
    ),
    Comparison(
        "MFLI + prior vs ANN with the prior as a dimension",
        lineup.MFLI_PRIOR,
        (lineup.ANN_DIMENSION,),
        _wishes(),
    ),
    Comparison(
        "hybrid MFLI vs best of popularity and item-kNN",
        lineup.HYBRID,
        (lineup.POPULAR, lineup.DECAYED, lineup.KNN),
        _wishes(all100=0.01, fresh100=0.03, tail100=0.0),
    ),
    Comparison(
        "hybrid MFLI vs hybrid multi-ANN 2x", lineup.HYBRID, (lineup.HYBRID_ANN,), _wishes(all100=0.03, fresh100=0.10)
    ),
    Comparison(
        "co-trained codes vs post-hoc RQ at equal items scored",
        lineup.MFLI_PRIOR,
        (lineup.RQ,),
        _wishes(all100=0.0, fresh100=-0.02, tail100=0.05),
        equal_scored=True,
    ),
    Comparison("hourly refresh vs frozen, exact similarity", lineup.EXACT, (lineup.EXACT_FROZEN,), _wishes(all100=1.0)),
    Comparison(
        "three facets vs one at equal items scored",
        lineup.MFLI_PRIOR,
        (lineup.ONE_FACET,),
        _wishes(all100=0.03),
        equal_scored=True,
    ),
    Comparison("MFLI + prior vs exact search, similarity only", lineup.MFLI_PRIOR, (lineup.EXACT,), _wishes()),
    Comparison("MFLI + prior vs exact search + prior", lineup.MFLI_PRIOR, (lineup.EXACT_PRIOR,), _wishes()),
    Comparison(
        "MFLI + prior vs best of popularity and item-kNN",
        lineup.MFLI_PRIOR,
        (lineup.POPULAR, lineup.DECAYED, lineup.KNN),
        _wishes(),
    ),
)

ABLATIONS: Final = (
    Comparison("rebalancing", lineup.UNBALANCED, (lineup.MFLI_PRIOR,), _LOOK, equal_scored=True),
    Comparison("index selection: drawn by votes", lineup.MULTINOMIAL, (lineup.FEW,), _LOOK),
    Comparison("index selection: at random", lineup.UNSELECTED, (lineup.FEW,), _LOOK),
    Comparison(
        "facets 3 -> 1, the first one's index", lineup.ONE_FACET, (lineup.MFLI_PRIOR,), _LOOK, equal_scored=True
    ),
    Comparison("facets 3 -> 1, trained alone", lineup.TRAINED_ALONE, (lineup.MFLI_PRIOR,), _LOOK, equal_scored=True),
    Comparison("delayed start", lineup.EAGER, (lineup.MFLI_PRIOR,), _LOOK, equal_scored=True),
    Comparison("prior", lineup.MFLI, (lineup.MFLI_PRIOR,), _LOOK),
    Comparison("refresh", lineup.FROZEN, (lineup.MFLI_PRIOR,), _LOOK, equal_scored=True),
)


def comparisons(study: Study) -> dict[str, list[dict[str, Any]]]:
    """``wished`` and ``ablations``, those whose systems took part."""
    return {
        "wished": [_compare(study, each) for each in COMPARISONS if _took_part(study, each)],
        "ablations": [_compare(study, each) for each in ABLATIONS if _took_part(study, each)],
    }


def _took_part(study: Study, comparison: Comparison) -> bool:
    return comparison.ours in study.answers and all(name in study.answers for name in comparison.theirs)


def _compare(study: Study, comparison: Comparison) -> dict[str, Any]:
    figures = []
    for wish in comparison.wishes:
        mask = study.slices.masks[wish.slice_]
        ours = _hits(study, comparison, comparison.ours, wish.cut)
        against = {name: _hits(study, comparison, name, wish.cut) for name in comparison.theirs}
        best = max(against, key=lambda name: mean(against[name], mask))
        gain = _gain(mean(ours, mask), mean(against[best], mask))
        with np.errstate(divide="ignore", invalid="ignore"):
            samples = study.users.means(ours, mask) / study.users.means(against[best], mask) - 1
        figures.append(
            {
                "slice": wish.slice_,
                "cut": wish.cut,
                "ours": mean(ours, mask),
                "theirs": mean(against[best], mask),
                "best_of_theirs": best,
                "gain": gain,
                "interval": interval(np.where(np.isfinite(samples), samples, np.nan)),
                "wanted": wish.gain,
                "met": None if wish.gain is None else bool(gain >= wish.gain),
            }
        )
    return {
        "title": comparison.title,
        "ours": comparison.ours,
        "theirs": list(comparison.theirs),
        "equal_scored": comparison.equal_scored,
        "figures": figures,
        "rate": _rate(study, comparison),
    }


def _gain(ours: float, theirs: float) -> float:
    return ours / theirs - 1 if theirs else float("nan")


def _hits(study: Study, comparison: Comparison, name: str, cut: int) -> F64:
    if not comparison.equal_scored:
        return study.answers[name].hits[cut]
    level = study.answers[comparison.theirs[0]].scored[cut]
    curve = [answers for each, answers in study.answers.items() if each == name or lineup.is_on_curve(each, name)]
    return at_scored(curve, cut, level)


def _rate(study: Study, comparison: Comparison) -> dict[str, Any] | None:
    if comparison.rate is None:
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
        "wanted": comparison.rate,
        "met": ratio >= comparison.rate,
    }
