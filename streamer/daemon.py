"""The long-running process: opens everything, runs the pipeline, answers HTTP, stops within its deadline."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from indexer import report
from indexer.index import Index
from indexer.rebalance.compactor import out_of_bounds
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.retrieve import retrieve
from indexer.store import now_ms
from schemas.config import Config
from schemas.errors import StoreError, UsageError
from streamer.dead_letters import DeadLetterSink, FileDeadLetters, TopicDeadLetters
from streamer.generations import current_generation, load_model, open_index
from streamer.http import HttpServer, Routes
from streamer.metrics import Metrics
from streamer.pipeline import Pipeline, Progress
from streamer.sources.base import Source
from streamer.sources.eventlog import EventLogSource
from streamer.sources.kafka import KafkaSource

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without

log = structlog.get_logger(__name__)

STATE_FILE: Final = "daemon.json"
DEAD_LETTER_FILE: Final = "deadletters.jsonl"
_ASK_S: Final = 2.0


def open_source(config: Config, *, follow: bool) -> Source:
    """The configured source.

    Raises:
        UsageError: if an event log is wanted and not named or not there.
        BrokerError: if Kafka is wanted and does not answer or lacks a topic.
    """
    if config.source.kind == "kafka":
        return KafkaSource(config)
    if config.source.path is None:
        raise UsageError("source.kind is eventlog but source.path is not set; give --events DIRECTORY")
    return EventLogSource(config.source.path, follow=follow, max_line_bytes=config.limits.max_record_bytes)


def open_sink(config: Config) -> DeadLetterSink:
    """Where dead letters go: the topic beside Kafka, a file beside an event log."""
    if config.source.kind == "kafka":
        return TopicDeadLetters(config.kafka)
    return FileDeadLetters(config.data_dir / DEAD_LETTER_FILE)


def run_daemon(
    config: Config, *, to_end: bool = False, on_progress: Callable[[Progress], None] = lambda _: None
) -> Progress:
    """Run until a signal, or until the source's present end.

    The first SIGTERM or SIGINT stops gracefully within ``writer.shutdown_s``; a second one, or the deadline, at once.
    Whatever happens, the store holds whole batches only.

    Raises:
        FacetstreamError: what could not be opened, or ended the run.
    """
    model = load_model(config)
    index = open_index(config, model)
    with index:
        source = open_source(config, follow=not to_end)
        try:
            sink = open_sink(config)
            try:
                pipeline = Pipeline(
                    index, source, sink, model, config, to_end=to_end, metrics=Metrics(), on_progress=on_progress
                )
                _serve(config, index, model, pipeline)
                return pipeline.progress
            finally:
                sink.close()
        finally:
            source.close()


def _serve(config: Config, index: Index, model: FrozenModel, pipeline: Pipeline) -> None:
    server = HttpServer(config.http, pipeline.metrics.registry, _routes(config, index, pipeline))
    try:
        with _announced(config.data_dir / STATE_FILE, server.url):
            _banner(config, index, model, server.url)
            _run(config, pipeline)
    finally:
        server.close()
        log.info(
            "stopped",
            records=pipeline.progress.records,
            offsets=index.view.positions,
            live=index.view.totals.items_live,
        )


@contextmanager
def _announced(state_file: Path, url: str) -> Iterator[None]:
    """Tell other commands where this daemon is, while it runs."""
    try:
        state_file.write_bytes(orjson.dumps({"pid": os.getpid(), "url": url, "started_at_ms": now_ms()}))
    except OSError as error:
        raise StoreError(f"cannot write {state_file}: {error}; free disk space or choose another --data-dir") from error
    try:
        yield
    finally:
        state_file.unlink(missing_ok=True)


def _run(config: Config, pipeline: Pipeline) -> None:
    # The loaded index never becomes garbage; without this each full collection walks it and stalls a batch.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    restore = _stop_on_signals(pipeline, config.writer.shutdown_s)
    try:
        pipeline.run()
    finally:
        restore()
        gc.unfreeze()


def _banner(config: Config, index: Index, model: FrozenModel, url: str) -> None:
    manifest, totals = model.manifest, index.view.totals
    log.info(
        "started",
        store=str(index.store.path),
        generation=current_generation(config.data_dir),
        live=totals.items_live,
        leaves=[len(facet.alive()) for facet in index.view.facets],
        model=f"{manifest.name} {manifest.version}",
        model_hash=manifest.model_hash,
        codebook_hash=manifest.codebook_hash,
        source=config.kafka.bootstrap_servers if config.source.kind == "kafka" else str(config.source.path),
        offsets=index.view.positions,
        http=url,
    )


def _stop_on_signals(pipeline: Pipeline, deadline_s: float) -> Callable[[], None]:
    """Install handlers; returns what puts the old ones back. Outside the main thread nothing is installed."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    stopping = threading.Event()

    def expire() -> None:
        # Everything written so far is consistent; waiting longer than promised is worse than stopping here.
        log.error("shutdown_deadline_passed", seconds=deadline_s)
        os._exit(1)

    def handle(number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()
        timer = threading.Timer(deadline_s, expire)
        timer.daemon = True
        timer.start()
        timers.append(timer)
        pipeline.stop()

    timers: list[threading.Timer] = []
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()

    return restore


def _routes(config: Config, index: Index, pipeline: Pipeline) -> Routes:
    reader = ViewReader(index.view)

    def live() -> tuple[bool, dict[str, Any]]:
        idle_s = time.monotonic() - pipeline.progress.turned_at
        return idle_s < config.http.live_after_s, {"seconds_since_turn": round(idle_s, 3)}

    def ready() -> tuple[bool, dict[str, Any]]:
        caught_up = pipeline.reader.caught_up
        return caught_up, {"caught_up": caught_up, "lag": sum(pipeline.lag().values())}

    def status() -> dict[str, Any]:
        totals, progress = index.view.totals, pipeline.progress
        return {
            "records": progress.records,
            "seconds_since_batch": round(time.monotonic() - progress.applied_at, 3),
            "lag": pipeline.lag(),
            "offsets": dict(index.view.positions),
            "items_live": totals.items_live,
            "out_of_bounds": out_of_bounds(index.view),
            "splits": totals.splits,
            "merges": totals.merges,
        }

    def query(document: dict[str, Any]) -> dict[str, Any]:
        triggers = document.get("items")
        if not isinstance(triggers, list) or not all(isinstance(trigger, str) for trigger in triggers):
            raise UsageError('give {"items": ["ID", ...]} with optional "k", "indices", "seed"')
        seed = document.get("seed")
        if seed is not None and (type(seed) is not int or seed < 0):
            raise UsageError(f"seed must be a whole number from 0 up, not {seed!r}")
        overrides = {name: document[name] for name in ("k", "indices") if name in document}
        settings = type(config.retrieval).model_validate(config.retrieval.model_dump() | overrides)
        found = retrieve(reader, triggers, settings, now_ms(), seed)
        return report.query_reply(triggers, found, reader.item_ids(found.ordinals)).model_dump(mode="json")

    def compact(_document: dict[str, Any]) -> dict[str, Any]:
        done = pipeline.compactor.run_until_idle()
        return {"splits": done.splits, "merges": done.merges, "marks": done.marks, "moved": done.moved}

    return Routes(live, ready, status, {"/query": query, "/compact": compact})


def running_daemon(data_dir: Path) -> str | None:
    """URL of the daemon that runs on this data directory, if one does."""
    try:
        state = orjson.loads((data_dir / STATE_FILE).read_bytes())
        url = str(state["url"])
        with urllib.request.urlopen(f"{url}/livez", timeout=_ASK_S):  # noqa: S310  # our own daemon's address
            return url
    except urllib.error.HTTPError:
        return url  # it answers, if only that it is stuck
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or the file of one that was killed
