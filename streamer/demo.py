"""The whole main job on the shipped data, without a broker: import, train, stream, rebalance, query, verify."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from indexer import report
from indexer.index import Index
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.retrieve import fan_out
from model_runtime.runtime import FrozenModel
from model_runtime.training.data import TrainingLog
from schemas.config import Config, HttpConfig, ModelConfig, SourceConfig
from schemas.errors import UsageError
from schemas.evaluation import EvaluationSettings
from schemas.replies import DemoReply, FreshnessQuantiles, ItemReply, LeafRow, QueryReply, StatsReply, VerifyReply
from schemas.training import TrainingConfig
from streamer.dead_letters import FileDeadLetters
from streamer.evaluation.run import evaluate
from streamer.evaluation.timeline import read_timeline, split_time
from streamer.generations import (
    current_generation,
    dead_letter_path,
    load_model,
    open_for_reading,
    open_index,
    remove_all,
)
from streamer.importers import examples_dir
from streamer.importers.movielens import import_movielens
from streamer.pipeline import Pipeline, Progress
from streamer.reader import Span
from streamer.sources.eventlog import EventLogSource
from streamer.train import train_artifact
from streamer.training_data import read_training_log
from streamer.verification import verify_shards

TRAINED_SHARE: Final = 0.8
_TOP_LEAVES: Final = 5
_RESULTS: Final = 10
_REQUESTS: Final = 1_000

Stage = Callable[[str, int | None], Callable[[int], None]]
"""Begins a stage with its name and size, and returns what takes its advance."""


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """Everything the demo has to show.

    Attributes:
        trigger: the film that was followed by hand.
        titles: item id -> title.
        trained: False where the artifact of an earlier run was kept.
    """

    reply: DemoReply
    stats: StatsReply
    largest: list[LeafRow]
    trigger: ItemReply
    answer: QueryReply
    titles: dict[str, str]
    trained: bool


def run_demo(workdir: Path, *, retrain: bool, stage: Stage) -> DemoOutcome:
    """Run it below ``workdir``; an event log and a model of an earlier run are kept, the index is built anew.

    Raises:
        UsageError: if ``workdir`` holds something else.
    """
    events, model_dir, data_dir = workdir / "events", workdir / "model", workdir / "data"
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"{workdir} is a file; give --workdir a directory")
    if workdir.exists() and any(entry.name not in {"events", "model", "data"} for entry in workdir.iterdir()):
        raise UsageError(f"{workdir} holds other things; give --workdir an empty or new directory")
    if not events.exists():
        import_movielens(examples_dir(), events, stage("import MovieLens", None))
    log = read_training_log(events)
    until_ms = split_time(log, TRAINED_SHARE)

    began = time.monotonic()
    train = retrain or not model_dir.exists()
    if train:
        settings = TrainingConfig(name="movielens-small")
        train_artifact(events, model_dir, settings, until_ms, stage("train", settings.steps))
    training_seconds = time.monotonic() - began

    remove_all(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    config = Config(
        data_dir=data_dir,
        source=SourceConfig(kind="eventlog", path=events),
        model=ModelConfig(path=model_dir),
        http=HttpConfig(port=0),
    )
    model = load_model(config)
    progress, seconds, answer = _stream(config, model, stage)
    with open_for_reading(config) as stores:
        checked = verify_shards(stores, model)
        stats = report.stats(stores)
        largest = report.leaves(stores, None, _TOP_LEAVES)
        trigger = report.item(stores, answer.triggers[0])
    recall = evaluate(
        read_timeline(events, until_ms),
        EvaluationSettings(requests=_REQUESTS, refresh_s=None, counters=config.counters, retrieval=config.retrieval),
        until_ms,
        model=model,
        full=False,
        stage=stage,
    )
    return DemoOutcome(
        _reply(progress, seconds, stats, checked, recall, training_seconds if train else 0.0),
        stats,
        largest,
        trigger,
        answer,
        _titles(log),
        train,
    )


def _stream(config: Config, model: FrozenModel, stage: Stage) -> tuple[Progress, float, QueryReply]:
    """The log through the pipeline, and one question to the live view."""
    assert config.source.path is not None
    source = EventLogSource(config.source.path)
    with open_index(config, model) as index:
        try:
            sink = FileDeadLetters(dead_letter_path(config.data_dir, current_generation(config.data_dir)))
            advance = stage("stream", sum(source.end_offsets().values()))
            seen = 0

            def on_progress(progress: Progress) -> None:
                nonlocal seen
                advance(progress.records - seen)
                seen = progress.records

            span = Span(to_end=True)
            pipeline = Pipeline(index, source, sink, model, config, span=span, on_progress=on_progress)
            began = time.monotonic()
            pipeline.run()
            return pipeline.progress, time.monotonic() - began, _ask(index, config)
        finally:
            source.close()


def _ask(index: Index, config: Config) -> QueryReply:
    """What goes with the item that has most engagements."""
    view = index.view
    trigger = view.ids[int(view.items["counts"].sum(1).argmax())]
    settings = config.retrieval.model_copy(update={"k": _RESULTS})
    return report.query_reply(
        [trigger], fan_out({0: ViewReader(view)}, [trigger], settings, view.totals.stream_time_ms)
    )


def _reply(
    progress: Progress,
    seconds: float,
    stats: StatsReply,
    checked: VerifyReply,
    recall: dict[str, object],
    training_seconds: float,
) -> DemoReply:
    milliseconds = np.array([latency for latency, _ in progress.freshness_s]) * 1_000
    weights = np.array([count for _, count in progress.freshness_s])
    p50, p99 = np.percentile(np.repeat(milliseconds, weights), [50, 99]).tolist()
    return DemoReply(
        items=stats.items.live,
        engagements=stats.engagements.applied,
        seconds=round(seconds, 3),
        items_per_second=round(progress.records / seconds),
        freshness_ms=FreshnessQuantiles(p50=round(p50, 1), p99=round(p99, 1)),
        splits=stats.splits,
        merges=stats.merges,
        verify_=checked,
        recall=recall,
        training_seconds=round(training_seconds, 1),
    )


def _titles(log: TrainingLog) -> dict[str, str]:
    return {item_id: content.title or "" for item_id, content in zip(log.item_ids, log.contents, strict=True)}
