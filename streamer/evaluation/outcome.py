"""What a replay found, and several of them as one: parts of a seed may be replayed in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamer.evaluation.system import I64, Bool

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CUTS: Final = (100, 500)
HEAD: Final = 200
"""The tail is what is not among so many most engaged items of the last hour."""
LOW_COUNT: Final = 20
"""Items with fewer engagements so far are low-count items."""


@dataclass(slots=True)
class Record:
    """What one system did.

    Attributes:
        hits: cut -> (Q,) bool, the target was among the first so many.
        scored: cut -> (Q,) int64 items scored.
        low: (Q,) share of low-count items in the first answer.
        seconds: cut -> thread seconds of the timed requests, and how many these were.
    """

    hits: dict[int, Bool]
    scored: dict[int, I64]
    low: np.ndarray[Any, np.dtype[np.float64]]
    seconds: dict[int, list[float]]

    @classmethod
    def of(cls, requests: int) -> Record:
        """Nothing yet."""
        return cls(
            {cut: np.zeros(requests, np.bool_) for cut in CUTS},
            {cut: np.zeros(requests, np.int64) for cut in CUTS},
            np.zeros(requests),
            {cut: [0.0, 0.0] for cut in CUTS},
        )


@dataclass(frozen=True, slots=True)
class Requested:
    """What is true of the requests, whoever answers.

    Attributes:
        pooled: (Q,) bool, the target was in the pool when it was asked for; the others nobody can find.
        earlier: (Q,) engagements of the target before.
        tail: (Q,) bool.
        pool: (Q,) items of the pool.
    """

    pooled: Bool
    earlier: I64
    tail: Bool
    pool: I64

    @classmethod
    def of(cls, requests: int) -> Requested:
        """Nothing yet."""
        return cls(
            np.zeros(requests, np.bool_),
            np.zeros(requests, np.int64),
            np.zeros(requests, np.bool_),
            np.zeros(requests, np.int64),
        )


@dataclass(slots=True)
class Outcome:
    """What a replay found.

    Attributes:
        requested: of the requests.
        parts: names of the systems of each part of the line-up.
        records: by name of the system.
        health: of each index at the end, by name, with the codewords in use at every refresh.
        refreshes: seconds of each refresh, by line and by what took them.
    """

    requested: Requested
    parts: dict[str, tuple[str, ...]]
    records: dict[str, Record]
    health: dict[str, dict[str, Any]]
    refreshes: dict[str, list[dict[str, float]]]


def merged(outcomes: Sequence[Outcome], parts: Iterable[str], lines: Iterable[str]) -> Outcome:
    """One outcome of replays of different parts over the same requests with the same seed.

    Args:
        outcomes: of all parts together.
        parts: the order of the line-up.
        lines: the order of the lines of models.

    Raises:
        ValueError: they are not of the same requests, or an index that two of them kept did not come out the same.
    """
    first = outcomes[0]
    for other in outcomes[1:]:
        for column in fields(Requested):
            if not np.array_equal(getattr(first.requested, column.name), getattr(other.requested, column.name)):
                raise ValueError(f"replays of one seed differ in what is true of the requests ({column.name})")
    names = {part: systems for outcome in outcomes for part, systems in outcome.parts.items()}
    of = {name: outcome for outcome in outcomes for systems in outcome.parts.values() for name in systems}
    order = [name for part in parts for name in names[part]]
    return Outcome(
        first.requested,
        {part: names[part] for part in parts},
        {name: of[name].records[name] for name in order},
        _health(outcomes, order),
        {line: _refreshes([each.refreshes[line] for each in outcomes if line in each.refreshes]) for line in lines},
    )


def _health(outcomes: Sequence[Outcome], order: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of every index once; those of several processes were trained and told alike, and must be alike."""
    out: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        for name, health in outcome.health.items():
            if out.setdefault(name, health) != health:
                raise ValueError(f"the index of {name!r} came out differently in two processes of one seed")
    return {name: out[name] for name in order if name in out}


def _refreshes(lists: Sequence[list[dict[str, float]]]) -> list[dict[str, float]]:
    """What several processes did alike counts once, as the first of them took it."""
    out = []
    for same in zip(*lists, strict=True):
        seconds: dict[str, float] = {}
        for each in same:
            seconds = each | seconds
        out.append(seconds)
    return out
