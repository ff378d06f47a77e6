"""The outcomes of an evaluation as one JSON document: figures with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.evaluation import lineup
from streamer.evaluation.comparisons import comparisons
from streamer.evaluation.metrics import Answers, Slices, Users, interval, mean
from streamer.evaluation.outcome import CUTS, HEAD, LOW_COUNT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from model_runtime.training.data import TrainingLog
    from schemas.evaluation import EvaluationSettings
    from streamer.evaluation.outcome import Outcome
    from streamer.evaluation.requests import Requests

_SHOWN_BY_HOUR = (lineup.POPULAR, lineup.KNN, lineup.ANN, lineup.MFLI, lineup.MFLI_PRIOR, lineup.HYBRID)


@dataclass(frozen=True, slots=True)
class Study:
    """The outcomes of all seeds over the same requests.

    Attributes:
        log: the whole log.
        outcomes: one for each seed.
        answers: by system.
        slices, users: of the requests.
    """

    log: TrainingLog
    requests: Requests
    outcomes: Sequence[Outcome]
    answers: dict[str, Answers]
    slices: Slices
    users: Users


def document(study: Study, settings: EvaluationSettings, from_ms: int, to_ms: int | None) -> dict[str, Any]:
    """Everything there is to tell, for JSON."""
    requests, masks = study.requests, study.slices.masks
    first = study.outcomes[0]
    found: dict[str, Any] = _finite(
        {
            "data_set": settings.name,
            "window": {"from_ms": from_ms, "to_ms": to_ms},
            "settings": settings.model_dump(mode="json"),
            "definitions": {"head": HEAD, "low_count": LOW_COUNT},
            "queries": int(masks["all"].sum()),
            "left_out": len(requests) - int(masks["all"].sum()),
            "eligible": requests.eligible,
            "users": len(np.unique(requests.user)),
            "slices": {name: int(mask.sum()) for name, mask in masks.items()},
            "pool": float(first.requested.pool.mean()) if len(requests) else 0.0,
            "pool_range": [int(first.requested.pool.min(initial=1 << 60)), int(first.requested.pool.max(initial=0))],
            "seeds": len(study.outcomes),
            "systems": [_system(study, name) for name in study.answers],
            "comparisons": comparisons(study, settings.name),
            "refreshes": _refreshes(study.outcomes),
            "index": {name: _health(study.outcomes, name) for name in first.health},
            "by_hour": _by_hour(study),
        }
    )
    return found


def _system(study: Study, name: str) -> dict[str, Any]:
    answers, records = study.answers[name], [outcome.records[name] for outcome in study.outcomes]
    masks = study.slices.masks
    out: dict[str, Any] = {"name": name}
    for slice_, mask in masks.items():
        for cut in CUTS:
            key = f"recall@{cut}" if slice_ == "all" else f"{slice_}_recall@{cut}"
            out[key] = mean(answers.hits[cut], mask)
            out[f"{key}_interval"] = interval(study.users.means(answers.hits[cut], mask))
            out[f"{key}_seeds"] = [mean(record.hits[cut].astype(np.float64), mask) for record in records]
    there = masks["all"]
    out["low_exposure_share"] = float(np.mean([mean(record.low, there) for record in records]))
    for cut in CUTS:
        out[f"scored@{cut}"] = answers.scored[cut]
        out[f"queries_per_second@{cut}"] = _rate(records, cut)
    out["scored_per_query"] = answers.scored[CUTS[0]]
    return out


def _rate(records: Sequence[Any], cut: int) -> float:
    seconds = sum(record.seconds[cut][0] for record in records)
    return sum(record.seconds[cut][1] for record in records) / seconds if seconds else float("nan")


def _refreshes(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    out = {}
    for line in outcomes[0].refreshes:
        each = [seconds for outcome in outcomes for seconds in outcome.refreshes[line]]
        kinds = sorted({kind for seconds in each for kind in seconds})
        out[line] = {
            "count": len(each),
            "mean_s": {kind: float(np.mean([seconds.get(kind, 0.0) for seconds in each])) for kind in kinds},
            "max_s": max((sum(seconds.values()) for seconds in each), default=0.0),
        }
    return out


def _health(outcomes: Sequence[Outcome], name: str) -> dict[str, Any]:
    """The last of every seed: the worst of shares, the mean of likenesses, sizes and usage of the first."""
    each = [outcome.health[name] for outcome in outcomes]
    active = np.concatenate([health["codewords_active_shares"] for health in each])
    sizes = np.array(each[0]["sizes"])
    return {
        **{key: value for key, value in each[0].items() if key not in {"sizes", "codewords_active_shares"}},
        "within_bounds_share": min(health["within_bounds_share"] for health in each),
        "codewords_active_share": {"mean": float(active.mean()), "least": float(active.min())},
        "similarity_within": float(np.mean([health["similarity_within"] for health in each])),
        "similarity_between": float(np.mean([health["similarity_between"] for health in each])),
        "size_percentiles": np.percentile(sizes, np.arange(0, 101)).tolist() if len(sizes) else [],
    }


def _by_hour(study: Study) -> dict[str, Any]:
    """Recall@100 by hour of the day, UTC."""
    hour = study.requests.time // 3_600_000 % 24
    there = study.slices.masks["all"]
    names: Iterable[str] = [name for name in _SHOWN_BY_HOUR if name in study.answers]
    return {
        "requests": [int((there & (hour == h)).sum()) for h in range(24)],
        "recall": {
            name: [mean(study.answers[name].hits[CUTS[0]], there & (hour == h)) for h in range(24)] for name in names
        },
    }


def _finite(value: Any) -> Any:
    """The same with None for what is not a number, six digits of the rest."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
