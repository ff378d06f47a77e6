"""A log in true time: everybody is told what happened, then asked, and only then told what the user did next."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from streamer.evaluation.outcome import CUTS, HEAD, LOW_COUNT, Outcome, Record, Requested
from streamer.evaluation.system import Follower, Questions, System

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from model_runtime.runtime import FrozenModel
    from model_runtime.training.data import TrainingLog
    from streamer.evaluation.index import LiveIndex
    from streamer.evaluation.learner import Learner
    from streamer.evaluation.past import Past
    from streamer.evaluation.requests import Requests
    from streamer.evaluation.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Schedule:
    """When things happen, in event time.

    Attributes:
        tick_ms: requests are asked with what was known when their tick began.
        refresh_ms: how often learners give a newer model; None: never.
        probes: at so many moments answering is timed; probe: of so many requests at once.
    """

    tick_ms: int = 60_000
    refresh_ms: int | None = 3_600_000
    probes: int = 8
    probe: int = 64


@dataclass(slots=True)
class Team:
    """Systems over one line of models, with what they follow.

    Attributes:
        followers: by name, told of the past in this order.
        indexes: those that report their health, by name.
        parts: names of the systems of each part of the line-up.
    """

    followers: dict[str, Follower]
    systems: list[System]
    indexes: dict[str, LiveIndex] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def close(self) -> None:
        """Release what is open."""
        for index in self.indexes.values():
            index.close()


@dataclass(frozen=True, slots=True)
class Line:
    """A line of models, and who uses them."""

    name: str
    learner: Learner
    team: Callable[[Past, FrozenModel], Team]


def replay(
    timeline: Timeline,
    requests: Requests,
    past: Past,
    lines: Sequence[Line],
    schedule: Schedule,
    from_ms: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Ask every request of every system.

    Args:
        timeline: the log.
        requests: all at or after ``from_ms``.
        past: of the same log, still at its beginning.
        lines: models and systems; names of systems differ.
        schedule: ticks and refreshes.
        from_ms: until here learners may learn at once; from here on time passes step by step.
        progress: told the number of requests answered since the last call.
    """
    n = len(requests)
    past.advance(from_ms)
    log = timeline.log.before(from_ms)
    with ExitStack() as stack:
        teams = []
        for line in lines:
            teams.append(line.team(past, line.learner.first(log)))
            stack.callback(teams[-1].close)
        systems = [system for team in teams for system in team.systems]
        outcome = Outcome(
            Requested.of(n),
            {part: names for team in teams for part, names in team.parts.items()},
            {system.name: Record.of(n) for system in systems},
            {},
            {line.name: [] for line in lines},
        )
        active: dict[str, list[float]] = {}
        timed = min(n, schedule.probe)
        for moment, begin, end, refresh in _moments(requests, schedule, from_ms):
            news = past.advance(moment)
            for team in teams:
                for follower in team.followers.values():
                    follower.follow(news)
            if refresh:
                _watch(teams, active)
                log = timeline.log.before(moment)
                for line, team in zip(lines, teams, strict=True):
                    outcome.refreshes[line.name] += _refresh(line, team, log, moment)
            if end > begin:
                if begin >= timed:
                    _probe(systems, requests.asked(max(0, begin - schedule.probe), begin, moment), outcome)
                    timed += max(1, n // schedule.probes)
                _ask(systems, requests, (begin, end), past, moment, outcome)
                progress(end - begin)
        _watch(teams, active)
        for team in teams:
            for name, index in team.indexes.items():
                outcome.health[name] = index.health() | {"codewords_active_shares": active[name]}
    return outcome


def _moments(requests: Requests, schedule: Schedule, from_ms: int) -> Iterator[tuple[int, int, int, bool]]:
    """(moment, begin, end, refresh): who is asked at each, and whether models are refreshed before."""
    ticks = np.maximum(from_ms, requests.time // schedule.tick_ms * schedule.tick_ms)
    starts = np.flatnonzero(np.diff(ticks, prepend=-1))
    ends = [*starts[1:].tolist(), len(ticks)]
    due = None if schedule.refresh_ms is None else from_ms + schedule.refresh_ms
    for begin, end in zip(starts.tolist(), ends, strict=True):
        moment = int(ticks[begin])
        while due is not None and schedule.refresh_ms is not None and due <= moment:
            yield due, begin, begin, True
            due += schedule.refresh_ms
        yield moment, begin, end, False


def _ask(
    systems: Sequence[System], requests: Requests, span: tuple[int, int], past: Past, moment: int, outcome: Outcome
) -> None:
    begin, end = span
    asked, target = requests.asked(begin, end, moment), requests.target[begin:end]
    at = slice(begin, end)
    head = np.argsort(-past.hour, kind="stable")[:HEAD]
    outcome.requested.pooled[at] = past.live[target]
    outcome.requested.earlier[at] = past.total[target]
    outcome.requested.tail[at] = ~np.isin(target, head[past.hour[head] > 0])
    outcome.requested.pool[at] = np.count_nonzero(past.live)
    low = np.append(past.total < LOW_COUNT, False)  # the last one stands for no item
    for system in systems:
        record = outcome.records[system.name]
        most = system.answer(asked, CUTS[-1])
        for cut in CUTS:
            found = most if system.nested or cut == CUTS[-1] else system.answer(asked, cut)
            rows = found.rows[:, :cut]
            record.hits[cut][at] = (rows == target[:, None]).any(1)
            record.scored[cut][at] = found.scored
            if cut == CUTS[0]:
                record.low[at] = low[rows].sum(1) / np.maximum(1, (rows >= 0).sum(1))


def _probe(systems: Sequence[System], asked: Questions, outcome: Outcome) -> None:
    """Time one block of requests; what is answered is not looked at."""
    for system in systems if len(asked) else ():
        for cut in CUTS:
            began = time.thread_time()
            system.answer(asked, cut)
            spent = outcome.records[system.name].seconds[cut]
            spent[0] += time.thread_time() - began
            spent[1] += len(asked)


def _refresh(line: Line, team: Team, log: TrainingLog, now_ms: int) -> list[dict[str, float]]:
    """Go over to the next model, if there is one; seconds it took to learn, and of each follower."""
    began = time.perf_counter()
    model = line.learner.next(log, now_ms)
    if model is None:
        return []
    seconds = {"learn": time.perf_counter() - began}
    for name, follower in team.followers.items():
        began = time.perf_counter()
        follower.refresh(model)
        seconds[name] = time.perf_counter() - began
    return [seconds]


def _watch(teams: Sequence[Team], active: dict[str, list[float]]) -> None:
    for team in teams:
        for name, index in team.indexes.items():
            active.setdefault(name, []).append(index.codewords_active_share())
