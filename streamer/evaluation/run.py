"""An evaluation from beginning to end: a replay for every seed, beside each other where there are cores."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from schemas.errors import UsageError
from streamer.evaluation.lineup import Stage, lines
from streamer.evaluation.metrics import Answers, Slices, Users
from streamer.evaluation.past import Past
from streamer.evaluation.replay import Outcome, Schedule, replay
from streamer.evaluation.report import Study, document
from streamer.evaluation.requests import Requests, build_requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_runtime.runtime import FrozenModel
    from schemas.evaluation import EvaluationSettings
    from streamer.evaluation.timeline import Timeline


def _silent(_name: str, _total: int) -> Callable[[int], None]:
    return lambda _count: None


@dataclass(frozen=True, slots=True)
class _Run:
    """What the replays of all seeds have in common."""

    timeline: Timeline
    requests: Requests
    settings: EvaluationSettings
    from_ms: int
    model: FrozenModel | None
    full: bool

    def seed(self, seed: int, stage: Callable[[str, int], Callable[[int], None]] = _silent) -> Outcome:
        settings = self.settings
        refresh_ms = None if settings.refresh_s is None else int(settings.refresh_s * 1_000)
        schedule = Schedule(int(settings.tick_s * 1_000), refresh_ms)
        with tempfile.TemporaryDirectory(prefix="facetstream-evaluation-") as scratch:
            steps = stage(f"train, seed {seed}", settings.training.steps)
            on = Stage(self.timeline.log, settings, Path(scratch), seed)
            made = lines(on, self.model, steps, full=self.full)
            past = Past(self.timeline, settings.counters.half_lives_s, settings.pool_s)
            answered = stage(f"replay, seed {seed}", len(self.requests))
            return replay(self.timeline, self.requests, past, made, schedule, self.from_ms, answered)


def evaluate(
    timeline: Timeline,
    settings: EvaluationSettings,
    from_ms: int,
    to_ms: int | None = None,
    *,
    model: FrozenModel | None = None,
    full: bool = True,
    jobs: int = 1,
    stage: Callable[[str, int], Callable[[int], None]] = _silent,
) -> dict[str, Any]:
    """Measure.

    Args:
        timeline: the log (:func:`streamer.evaluation.timeline.read_timeline`).
        settings: how.
        from_ms: start of the evaluated span, epoch milliseconds.
        to_ms: its end.
        model: evaluated as it is, once; it should have learned from events before ``from_ms`` only. None: models are
            trained on what lies before and refreshed.
        full: with peers and ablations.
        jobs: seeds that run at a time, each in a process of its own if more than one; figures are the same, but
            for the queries a second.
        stage: begins a stage with its name and size, and returns what takes its advance.

    Returns:
        the document that ``facetstream evaluate --json`` prints.

    Raises:
        UsageError: the span holds no request.
    """
    requests = build_requests(timeline.log, from_ms, to_ms, settings.requests)
    if not len(requests):
        end = "the end of the log" if to_ms is None else f"{to_ms}"
        raise UsageError(
            f"no user with a history meets a new item from {from_ms} to {end} (epoch milliseconds): "
            "there is nothing to ask; give an earlier --from or a later --to"
        )
    run = _Run(timeline, requests, settings, from_ms, model, full)
    seeds = range(1 if model is not None else settings.seeds)
    if jobs > 1 and len(seeds) > 1:
        outcomes = []
        done = stage("seeds", len(seeds))
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for outcome in pool.map(run.seed, seeds):
                outcomes.append(outcome)
                done(1)
    else:
        outcomes = [run.seed(seed, stage) for seed in seeds]
    study = Study(
        timeline.log,
        requests,
        outcomes,
        {name: Answers.over(outcomes, name) for name in outcomes[0].records},
        Slices.of(timeline.log, requests, outcomes[0]),
        Users(requests.user),
    )
    return document(study, settings, from_ms, to_ms)
