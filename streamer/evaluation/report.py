"""Recall of the real index on a time split, beside popularity and exact search over the same embeddings."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.index import Index
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.retrieve import retrieve
from streamer.evaluation.recall import RecallEvaluation, SystemRecall, build_requests
from streamer.evaluation.timed_replay import TimedReplay
from streamer.generations import store_meta
from streamer.sources.eventlog import EventLogSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model_runtime.runtime import FrozenModel
    from model_runtime.training.data import TrainingLog
    from schemas.config import Config, RetrievalConfig

_DAY_S = 86_400


def evaluate_split(
    events: Path,
    log: TrainingLog,
    model: FrozenModel,
    config: Config,
    from_ms: int,
    *,
    max_requests: int = 1_000,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Recall@100 and @500 for requests from ``from_ms`` on.

    The index replays the log in event time and is asked before each request's own event is applied. The
    baselines see the same past: popularity counts engagements before the request, exact search compares the
    same embeddings.

    Args:
        events: the event log's directory.
        log: the same events in memory.
        model: the model that is evaluated; it should have learned from events before ``from_ms`` only.
        config: retrieval, rebalancing and limits.
        from_ms: start of the evaluated span, epoch milliseconds.
        max_requests: a seeded sample of at most this many requests.
        progress: called with the number of requests answered since the last call.
    """
    requests = build_requests(log, from_ms, max_requests=max_requests)
    evaluation = RecallEvaluation(log, requests)
    encoded = model.encode(log.contents)
    systems: list[SystemRecall] = [
        evaluation.popularity(None),
        evaluation.popularity(30 * _DAY_S),
        evaluation.popularity(365 * _DAY_S),
        evaluation.exact(encoded.vectors),
    ]
    for name, weight in (
        ("index, similarity only", 0.0),
        ("index, similarity + engagement prior", config.retrieval.engagement_weight),
    ):
        settings = config.retrieval.model_copy(update={"engagement_weight": weight})
        with tempfile.TemporaryDirectory(prefix="facetstream-evaluation-") as scratch:
            systems.append(_ask_index(name, evaluation, events, model, config, settings, Path(scratch), progress))
    report = evaluation.report(systems)
    return {
        "requests": report.requests,
        "eligible": report.eligible,
        "cold_requests": report.cold_requests,
        "pool": round(report.pool),
        "from_ms": from_ms,
        "systems": [
            {
                "name": system.name,
                **{f"recall@{cut}": _rounded(value) for cut, value in system.recall.items()},
                **{f"cold_recall@{cut}": _rounded(value) for cut, value in system.cold_recall.items()},
                "scored_per_query": round(system.scored_per_query, 1),
            }
            for system in report.systems
        ],
    }


def _ask_index(
    name: str,
    evaluation: RecallEvaluation,
    events: Path,
    model: FrozenModel,
    config: Config,
    settings: RetrievalConfig,
    scratch: Path,
    progress: Callable[[int], None],
) -> SystemRecall:
    meta = store_meta(model.manifest, "evaluation", config.counters.half_lives_s)
    source = EventLogSource(events)
    with Index.open(scratch, meta, model.codewords, config) as index:
        replay = TimedReplay(index, source, model, config)
        reader = ViewReader(index.view)

        def ask(triggers: Sequence[str], at_ms: int, k: int) -> tuple[Sequence[str], int]:
            replay.advance(at_ms)
            found = retrieve(reader, triggers, settings.model_copy(update={"k": k}), at_ms)
            progress(1)
            return reader.item_ids(found.ordinals), found.scored

        try:
            return evaluation.retrieval(name, ask)
        finally:
            source.close()


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def split_time(log: TrainingLog, share: float) -> int:
    """The moment by which ``share`` of the engagements have happened, epoch milliseconds."""
    return int(np.quantile(log.time, share, method="higher"))
