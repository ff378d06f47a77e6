"""Recall and what goes with it, with intervals by resampling users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from streamer.evaluation.outcome import CUTS
from streamer.evaluation.system import F64, Bool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from model_runtime.training.data import TrainingLog
    from streamer.evaluation.outcome import Outcome
    from streamer.evaluation.requests import Requests

COLD_BELOW: Final = 5
FRESH_MS: Final = 6 * 3_600_000
RESAMPLES: Final = 1_000
LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Slices:
    """Which of Q requests each figure is about; only requests that somebody could answer are in any.

    Attributes:
        masks: name -> (Q,) bool.
    """

    masks: Mapping[str, Bool]

    @classmethod
    def of(cls, log: TrainingLog, requests: Requests, outcome: Outcome) -> Slices:
        """All, cold (target with fewer than 5 engagements), fresh (target under 6 hours old), tail."""
        there = outcome.requested.pooled
        age = requests.time - log.created_at[requests.target]
        return cls(
            {
                "all": there,
                "cold": there & (outcome.requested.earlier < COLD_BELOW),
                "fresh": there & (age < FRESH_MS),
                "tail": there & outcome.requested.tail,
            }
        )


class Users:
    """Resampling of requests by user: what one user asks is not independent.

    Args:
        user: (Q,) who asked.
        seed: of the resamples.
    """

    def __init__(self, user: npt.NDArray[np.int32], seed: int = 0) -> None:
        _, self._of = np.unique(user, return_inverse=True)
        self._count = int(self._of.max(initial=-1)) + 1
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(self._count, np.full(self._count, 1 / max(1, self._count)), RESAMPLES)
        self._draws = draws.astype(np.float32)

    def means(self, values: F64, mask: Bool) -> F64:
        """(resamples,) mean of (Q,) values where the mask holds; NaN where a resample has none."""
        sums = np.bincount(self._of, values * mask, self._count)
        counts = np.bincount(self._of, mask, self._count)
        drawn = self._draws @ np.stack([sums, counts], 1).astype(np.float32)
        with np.errstate(invalid="ignore"):
            return np.asarray(drawn[:, 0] / drawn[:, 1], np.float64)


def mean(values: F64, mask: Bool) -> float:
    """Of (Q,) values where the mask holds; NaN where it never does."""
    return float(values[mask].mean()) if mask.any() else float("nan")


def interval(samples: F64) -> tuple[float, float]:
    """Where the middle 95 % of resampled figures lie."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Answers:
    """One system over all seeds, by request.

    Attributes:
        hits: cut -> (Q,) share of the seeds that found the target.
        scored: cut -> items scored, mean over requests and seeds.
    """

    hits: Mapping[int, F64]
    scored: Mapping[int, float]

    @classmethod
    def over(cls, outcomes: Sequence[Outcome], name: str) -> Answers:
        """Of the system of that name."""
        records = [outcome.records[name] for outcome in outcomes]
        return cls(
            {cut: np.mean([record.hits[cut] for record in records], axis=0) for cut in CUTS},
            {cut: float(np.mean([record.scored[cut].mean() for record in records])) for cut in CUTS},
        )


def at_scored(points: Sequence[Answers], cut: int, scored: float) -> F64:
    """(Q,) what systems of one kind find when they score so many items: between the two nearest, by log items scored.

    Outside of what they score the nearest one counts.
    """
    ordered = sorted(points, key=lambda point: point.scored[cut])
    at = np.log([max(point.scored[cut], 1e-9) for point in ordered])
    wanted = np.log(max(scored, 1e-9))
    if wanted <= at[0] or len(ordered) == 1:
        return ordered[0].hits[cut]
    if wanted >= at[-1]:
        return ordered[-1].hits[cut]
    right = int(np.searchsorted(at, wanted))
    share = (wanted - at[right - 1]) / (at[right] - at[right - 1])
    return np.asarray((1 - share) * ordered[right - 1].hits[cut] + share * ordered[right].hits[cut])
