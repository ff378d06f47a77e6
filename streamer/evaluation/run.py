"""An evaluation from beginning to end: a replay for every seed, in parts beside each other where there are cores."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from schemas.errors import DependencyError, UsageError
from streamer.evaluation.bench import Stage
from streamer.evaluation.division import cost, divided
from streamer.evaluation.lineup import lines, parts
from streamer.evaluation.metrics import Answers, Slices, Users
from streamer.evaluation.outcome import Outcome, merged
from streamer.evaluation.past import Past
from streamer.evaluation.replay import Schedule, replay
from streamer.evaluation.report import Study, document
from streamer.evaluation.requests import Requests, build_requests

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel
    from schemas.evaluation import EvaluationSettings
    from streamer.evaluation.lineup import Part
    from streamer.evaluation.timeline import Timeline

_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


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

    def parts(self) -> list[Part]:
        return parts(trained=self.model is None, full=self.full)

    def seed(
        self,
        seed: int,
        chosen: Collection[str] | None = None,
        stage: Callable[[str, int], Callable[[int], None]] = _silent,
    ) -> Outcome:
        """Replay some parts, or all."""
        settings = self.settings
        refresh_ms = None if settings.refresh_s is None else int(settings.refresh_s * 1_000)
        schedule = Schedule(int(settings.tick_s * 1_000), refresh_ms)
        with tempfile.TemporaryDirectory(prefix="facetstream-evaluation-") as scratch, _one_thread():
            steps = stage(f"train, seed {seed}", settings.training.steps)
            on = Stage(self.timeline.log, settings, Path(scratch), seed)
            made = lines(on, self.model, steps, full=self.full, chosen=chosen)
            past = Past(self.timeline, settings.counters.half_lives_s, settings.pool_s)
            answered = stage(f"replay, seed {seed}", len(self.requests))
            return replay(self.timeline, self.requests, past, made, schedule, self.from_ms, answered)

    def together(self, seeds: int, jobs: int, stage: Callable[[str, int], Callable[[int], None]]) -> list[Outcome]:
        """All seeds, each in as many groups of parts as there are processes for it."""
        tasks = [(seed, group) for group in divided(self.parts(), jobs // seeds) for seed in range(seeds)]
        tasks.sort(key=lambda task: -cost(task[1]))  # what takes longest begins first
        found: list[list[Outcome]] = [[] for _ in range(seeds)]
        done = stage("parts of seeds", len(tasks))
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with tempfile.TemporaryDirectory(prefix="facetstream-evaluation-") as scratch, _environment():
            shared = Path(scratch) / "run"
            shared.write_bytes(pickle.dumps(self))
            with ProcessPoolExecutor(min(jobs, len(tasks)), context, _end_with_parent) as pool:
                try:
                    seed_of = {
                        pool.submit(_task, shared, seed, tuple(part.name for part in group)): seed
                        for seed, group in tasks
                    }
                    for future in as_completed(seed_of):
                        found[seed_of[future]].append(future.result())
                        done(1)
                except BrokenProcessPool as error:
                    raise DependencyError(
                        "a process of the evaluation ended without an answer; was it killed for want of memory? "
                        "Try fewer --jobs"
                    ) from error
                except BaseException:
                    # What has not begun need not, for nobody will read it.
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        return [self.whole(outcomes) for outcomes in found]

    def whole(self, outcomes: Sequence[Outcome]) -> Outcome:
        """All parts of one seed."""
        everything = self.parts()
        return merged(outcomes, [part.name for part in everything], dict.fromkeys(part.line for part in everything))


def _end_with_parent() -> None:
    """In a process of its own: when the one that started it is killed, nobody waits for what it finds."""

    def wait(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=wait, args=(parent.sentinel,), name="parent", daemon=True).start()


def _task(shared: Path, seed: int, chosen: Collection[str]) -> Outcome:
    """In a process of its own; the run is read from a file, so that no process waits for another to be given it."""
    run: _Run = pickle.loads(shared.read_bytes())  # noqa: S301  # written by the process that started this one
    return run.seed(seed, chosen)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine: models are the same in every process, and in every run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _environment() -> Iterator[None]:
    """Processes started within compute with one thread each: there is one for every core already."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
        jobs: processes at a time: a seed for each, or parts of seeds where there are more processes than seeds. Figures
            are the same, but for the queries a second and the seconds of refreshes.
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
    seeds = 1 if model is not None else settings.seeds
    if jobs > 1 and seeds * len(run.parts()) > 1:
        outcomes = run.together(seeds, jobs, stage)
    else:
        outcomes = [run.whole([run.seed(seed, None, stage)]) for seed in range(seeds)]
    study = Study(
        timeline.log,
        requests,
        outcomes,
        {name: Answers.over(outcomes, name) for name in outcomes[0].records},
        Slices.of(timeline.log, requests, outcomes[0]),
        Users(requests.user),
    )
    return document(study, settings, from_ms, to_ms)
