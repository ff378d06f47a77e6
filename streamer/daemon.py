"""The long-running process: shards that are ours, kept current; HTTP; signals; switching generations."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import orjson
import structlog

from indexer.store import now_ms
from indexer.warm import warm_up
from schemas.config import Config
from schemas.errors import StoreError, UsageError
from streamer.answers import routes
from streamer.asking import STATE_FILE
from streamer.backup import Backups
from streamer.following import Following
from streamer.generations import (
    MEMBER_ID,
    current_generation,
    load_model,
    local_shards,
    make_generation,
    release_shard,
    require_generation,
)
from streamer.holding import held
from streamer.http import HttpServer
from streamer.membership import AllShards, Committer, KafkaGroup, Membership
from streamer.metrics import Metrics
from streamer.opening import open_source, shard_numbers
from streamer.promotion import Promotion
from streamer.publishing import Publishing
from streamer.reader import Span
from streamer.reencoding import Reencoding
from streamer.refreshing import coming, refreshed, switch_to
from streamer.shards import Duties, Generation, Shard, Step
from streamer.sources.base import Partition
from streamer.succession import Succession

log = structlog.get_logger(__name__)

_TURN_S: Final = 0.05
_WATCH_S: Final = 1.0
_SHARDS_SHARE: Final = 0.8  # of the time to stop; the rest is for the last commit and for leaving


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did, over all shards."""

    records: int
    letters: int


def run_daemon(
    config: Config,
    *,
    to_end: bool = False,
    resets: Mapping[str, str] | None = None,
    on_progress: Callable[[Step], None] = lambda _: None,
) -> Outcome:
    """Run until a signal, or until the source's present end.

    The first SIGTERM or SIGINT stops gracefully within ``writer.shutdown_s``; a second one, or the deadline, at once.
    Whatever happens, the stores hold whole batches only.

    Args:
        config: all settings.
        to_end: stop at the ends found at the start; this process then owns every shard.
        resets: partition name -> where to go on instead of where the store stands.
        on_progress: told of each batch, by the thread of its shard.

    Raises:
        FacetstreamError: what could not be opened, or ended the run.
    """
    with held(config.data_dir):
        _check_resets(config, resets or {})
        model = load_model(config)
        make_generation(config.data_dir, current_generation(config.data_dir), model)
        serving = Generation(current_generation(config.data_dir), model)
        duties = Duties(Span(to_end=to_end), resets=dict(resets or {}), on_progress=on_progress)
        daemon = Daemon(config, serving, duties)
        if not to_end:
            daemon.warm()
        try:
            server = HttpServer(config.http, daemon.metrics.registry, routes(config, daemon))
            try:
                with _announced(config.data_dir / STATE_FILE, server.url):
                    _banner(config, serving, server.url)
                    return daemon.run()
            finally:
                server.close()
        finally:
            daemon.close()


class Daemon:
    """Owns shards as its membership says, and runs each on threads of its own. Its methods belong to one thread.

    Attributes:
        serving: the generation that answers.
        shards: number -> shard of that generation.
        promotion: a generation that is catching up to take over, if one is.
        promoted: what came of the last one, for ``/status``.
        promoting: held by whoever begins one, or drops what others have left behind.
        turned_at: monotonic seconds of its last turn.
    """

    def __init__(self, config: Config, serving: Generation, duties: Duties) -> None:
        self.config = config
        self.serving = serving
        self.shards: dict[int, Shard] = {}
        self.promotion: Promotion | None = None
        self.promoted: dict[str, Any] | None = None
        self.metrics = Metrics()
        self.turned_at = time.monotonic()
        self.joined = False
        self._warming: threading.Thread | None = None
        self._durable: dict[Partition, int] = {}
        self._bounded = duties.span.to_end
        self._ended: list[Shard] = []
        self._successions: list[Succession] = []
        self._done = [0, 0]
        self._asked_to_stop = False
        self.promoting = threading.RLock()
        self._watched_at = 0.0
        self.membership = self._member()
        self._duties = replace(duties, on_durable=self._durable.update)
        self.backups = Backups(config, self.metrics)
        self.publishing = Publishing(config, self.metrics)
        self.following = Following(config, self)

    def _member(self) -> Membership:
        config, kafka = self.config, self.config.kafka
        if config.source.kind != "kafka":
            return AllShards(self, shard_numbers(config), None)
        if self._bounded or kafka.membership == "all":
            return AllShards(self, shard_numbers(config), Committer(kafka))
        shard_numbers(config)  # refuses topics that are not partitioned alike
        instance = kafka.group_instance_id or _instance_id(config.data_dir)
        return KafkaGroup(kafka, self, instance)

    def warm(self) -> None:
        """Have the kernels compiled beside all else; at later starts on a machine that takes less than a second."""

        def call_all() -> None:
            manifest = self.serving.model.manifest
            try:
                log.info("kernels_ready", seconds=round(warm_up(manifest.facets, manifest.dim), 1))
            except (OSError, StoreError) as error:  # it needs a temporary directory, the daemon does not
                log.warning("kernels_not_warmed", why=str(error))

        self._warming = threading.Thread(target=call_all, name="warm", daemon=True)
        self._warming.start()

    @property
    def warmed(self) -> bool:
        """Whether no batch and no request has to wait for a compiler any more."""
        return self._warming is None or not self._warming.is_alive()

    @property
    def caught_up(self) -> bool:
        """Whether every shard that is ours has reached its source's end once."""
        return self.joined and all(shard.ready for shard in list(self.shards.values()))

    # -- what the membership asks ----------------------------------------------------------------------------------

    def assign(self, shards: Collection[int], epoch: int) -> None:
        """Begin to own shards; they open on their own threads."""
        if shards:
            log.info("shards_assigned", shards=sorted(shards), epoch=epoch)
        if not self.joined:
            for number in set(local_shards(self.config.data_dir, self.serving.name)).difference(shards):
                release_shard(self.config.data_dir, number)  # another took it while we were away
        for number in sorted(shards):
            self.shards[number] = self._start(number, self.serving, self._duties, self.shards.get(number))
        if shards:
            # What was asked for at the start holds for what was ours then: a shard that comes later goes on.
            self._duties = replace(self._duties, resets={})
        self.joined = True  # last: before, a look from another thread would find no shard to wait for

    def revoke(self, shards: Collection[int], deadline_s: float) -> None:
        """Apply what is queued, sync, commit and close; after ``deadline_s`` drop what is left and go on alone."""
        log.info("shards_revoked", shards=sorted(shards))
        leaving = self._leaving(shards)
        for shard in leaving:
            shard.stop()
        self._join(leaving, deadline_s)
        self._commit()
        for shard in leaving:
            if shard.number not in self.shards:
                shard.release()

    def lost(self, shards: Collection[int]) -> None:
        """Close without applying or committing anything more: others may own the shards already."""
        log.warning("shards_lost", shards=sorted(shards))
        leaving = self._leaving(shards)
        for shard in leaving:
            shard.abandon()
        for shard in leaving:
            shard.release()
        self._ended += leaving  # they end by themselves; an owner that comes back waits for them

    def _leaving(self, shards: Collection[int]) -> list[Shard]:
        found = [self.shards.pop(number) for number in shards if number in self.shards]
        if self.promotion is not None:
            found += self.promotion.remove(shards)
        return found

    def _start(self, number: int, generation: Generation, duties: Duties, after: Shard | None) -> Shard:
        before = [ended for ended in self._ended if ended.number == number and ended.generation.name == generation.name]
        before += [] if after is None else [after]
        duties = replace(duties, may_write=lambda: self.membership.holds(number))
        shard = Shard(number, generation, self.config, duties, self.metrics, before)
        shard.start()
        return shard

    def _join(self, shards: Collection[Shard], deadline_s: float) -> None:
        until = time.monotonic() + deadline_s
        for shard in shards:
            if not shard.join(until - time.monotonic()):
                log.error("shard_not_released", shard=shard.number, seconds=deadline_s)
                shard.abandon()
            self._ended.append(shard)

    # -- turns -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask for a graceful end. Safe in signal handlers."""
        self._asked_to_stop = True

    def run(self) -> Outcome:
        """Turn until stopped or, where the span is bounded, until every shard is at its end.

        Raises:
            FacetstreamError: what ended a shard; the others are stopped gracefully first.
        """
        with _signals(self.stop, self.config.writer.shutdown_s):
            # What is loaded never becomes garbage; without this each full collection walks it and stalls a batch.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
            self.publishing.start(lambda: list(self.shards.values()))
            if not self._bounded:
                self.following.start()
            try:
                while not self._asked_to_stop and not self._at_end():
                    self.turned_at = time.monotonic()
                    self.membership.turn(_TURN_S)
                    self._commit()
                    self._raise_errors()
                    self._watch()
            finally:
                self._end()
                gc.unfreeze()
            self._raise_errors()
        return Outcome(*self._done)

    def close(self) -> None:
        """Leave the group; idempotent."""
        self.membership.close()

    def _at_end(self) -> bool:
        return self._bounded and self.joined and all(shard.state == "closed" for shard in self.shards.values())

    def _commit(self) -> None:
        if self._durable:
            # Writers put in more meanwhile: take what is there key by key.
            positions = {partition: self._durable.pop(partition) for partition in list(self._durable)}
            self.membership.commit(positions)

    def _raise_errors(self) -> None:
        for shard in [*self.shards.values(), *self._ended]:
            if shard.error is not None and shard.serving:
                raise shard.error

    def _watch(self) -> None:
        failed = [shard for shard in self._ended if shard.error is not None and shard.serving]
        self._ended = [shard for shard in self._ended if shard in failed or not shard.join(0)]
        if self.promotion is not None:
            self._turn(self.promotion)
        self._succeed()
        if time.monotonic() - self._watched_at > _WATCH_S:
            self._watched_at = time.monotonic()
            for shard in self.shards.values():
                shard.watch()
            self.backups.turn(self.shards.values())

    def _end(self) -> None:
        self.publishing.stop()
        self.following.stop()
        if self.promotion is not None:
            self._ended += self.promotion.remove(list(self.promotion.shards))
        leaving = [*self.shards.values(), *self._ended]
        for shard in leaving:
            shard.stop()
        self._join(leaving, _SHARDS_SHARE * self.config.writer.shutdown_s)
        self.backups.close()
        self.publishing.close()
        self.following.close()
        self._commit()
        log.info(
            "stopped",
            shards=sorted(self.shards),
            records=sum(shard.progress.records for shard in self.shards.values()),
        )
        self._done = [
            sum(shard.progress.records for shard in self.shards.values()),
            sum(shard.progress.letters for shard in self.shards.values()),
        ]

    # -- generations -----------------------------------------------------------------------------------------------

    def promote(self, name: str) -> Promotion:
        """Ask for a generation to catch up and to take over then. May be called by any thread.

        Raises:
            UsageError: if it is the one that serves, or another one is under way.
            NotFoundError, ArtifactError: if there is no such generation, or its model is damaged.
        """
        with self.promoting:
            if name == self.serving.name:
                raise UsageError(f"generation {name} is in use already")
            if self.promotion is not None:
                raise UsageError(f"generation {self.promotion.generation.name} is being promoted; wait for it")
            require_generation(self.config.data_dir, name)
            promotion = Promotion(Generation(name, load_model(self.config, name)), self.config, self._start_aside)
            self.promotion = promotion
        return promotion

    def refresh(self, artifact: Path) -> Promotion:
        """Ask for a generation that is this one encoded anew with another model, and takes over once it has caught up.

        One that was begun with this model and not finished is gone on with. May be called by any thread.

        Raises:
            UsageError: if the model is that of the generation in use, or a promotion is under way.
            ArtifactError, StoreMismatchError, StoreError: as :func:`streamer.refreshing.coming` says.
        """
        with self.promoting:
            if self.promotion is not None:
                raise UsageError(f"generation {self.promotion.generation.name} is being promoted; wait for it")
            generation = coming(self.config, self.serving, artifact)
            log.info("refresh_begun", generation=generation.name, model=str(artifact), before=self.serving.name)
            reencoding = Reencoding(self.config, generation, self.shards.get, self.metrics)

            def start(number: int, generation: Generation) -> Shard:
                return self._start_aside(number, generation, partial(reencoding, number))

            promotion = Promotion(generation, self.config, start, refresh=True)
            self.promotion = promotion
        return promotion

    def _start_aside(
        self, number: int, generation: Generation, begin: Callable[[Callable[[], bool]], None] | None = None
    ) -> Shard:
        duties = replace(self._duties, resets={}, build=True, begin=begin)
        return self._start(number, generation, duties, None)

    def _turn(self, promotion: Promotion) -> None:
        promotion.follow(self.shards)
        error = promotion.error()
        if error is not None:
            log.error("promotion_failed", generation=promotion.generation.name, error=str(error))
            leaving = promotion.remove(list(promotion.shards))
            for shard in leaving:
                shard.abandon()
            self._ended += leaving
            if promotion.refresh:
                self.metrics.refreshes.labels("failed").inc()
            self.promoted = promotion.end("failed", error)
            self.promotion = None  # last: whoever sees none finds what became of it
        elif self.joined and promotion.caught_up(self.shards):
            self._switch(promotion)

    def _switch(self, promotion: Promotion) -> None:
        """Every shard of the new generation has caught up: it answers from now on, and the old one is closed."""
        old, new = self.serving, promotion.generation
        switch_to(self.config.data_dir, new.name, old.name)
        leaving = list(self.shards.values())
        self.shards, self.serving, self.promoted = promotion.shards, new, promotion.end("done")
        self.promotion = None  # last: whoever sees none finds what became of it
        for shard in leaving:
            shard.stop()
            letters_at = promotion.letters_at.get(shard.number)
            self._successions.append(Succession(shard, self.shards[shard.number], letters_at))
        self._ended += leaving
        log.info("generation_promoted", generation=new.name, before=old.name, model_hash=new.model.manifest.model_hash)
        if promotion.refresh:
            self._tell_refreshed(promotion)

    def _tell_refreshed(self, promotion: Promotion) -> None:
        found = None
        with suppress(StoreError), ExitStack() as kept:  # one may end just now
            found = refreshed([kept.enter_context(shard.held_open()).store for shard in promotion.shards.values()])
        seconds = time.monotonic() - promotion.began
        self.metrics.refreshes.labels("done").inc()
        self.metrics.refresh_seconds.labels("whole").observe(seconds)
        if found is None:
            return
        for number, facet in enumerate(found.facets):
            if facet.changed is not None:
                self.metrics.refresh_changed.labels(number).set(facet.changed)
            if facet.similarity is not None and facet.similarity_low is not None:
                self.metrics.refresh_similarity.labels(number, "mean").set(facet.similarity)
                self.metrics.refresh_similarity.labels(number, "p05").set(facet.similarity_low)
        told = found.model_dump(mode="json", exclude={"at_ms", "seconds"})
        log.info("refreshed", generation=promotion.generation.name, seconds=round(seconds, 3), **told)

    def _succeed(self) -> None:
        """Shards of a new generation go on where the old ones have ended."""
        still = [each for each in self._successions if self.shards.get(each.after.number) is each.after]
        self._successions = [each for each in still if not each.turn()]


def _check_resets(config: Config, resets: Mapping[str, str]) -> None:
    """Refuse partitions that the source does not have, which no shard would ever reset."""
    if not resets:
        return
    source = open_source(config, follow=False)
    try:
        names = sorted(map(str, source.partitions()))
    finally:
        source.close()
    for name in resets:
        if name not in names:
            raise UsageError(f"--reset {name}: the source has no such partition; it has {', '.join(names)}")


def _instance_id(data_dir: Path) -> str:
    """Who this data directory is in the consumer group: a restart is the same member, and keeps its shards."""
    path = data_dir / MEMBER_ID
    try:
        if not path.exists():
            aside = path.with_name(f"{MEMBER_ID}.partial")
            aside.write_text(f"facetstream-{uuid.uuid4().hex}\n")
            aside.replace(path)
        return path.read_text().strip()
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}; choose another --data-dir") from error


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


def _banner(config: Config, serving: Generation, url: str) -> None:
    manifest = serving.model.manifest
    log.info(
        "started",
        data_dir=str(config.data_dir),
        generation=serving.name,
        model=f"{manifest.name} {manifest.version}",
        model_hash=manifest.model_hash,
        codebook_hash=manifest.codebook_hash,
        source=config.kafka.bootstrap_servers if config.source.kind == "kafka" else str(config.source.path),
        http=url,
    )


@contextmanager
def _signals(stop: Callable[[], None], deadline_s: float) -> Iterator[None]:
    """Stop on SIGTERM and SIGINT while it is entered. Outside the main thread nothing is installed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timers: list[threading.Timer] = []

    def expire() -> None:
        # Everything written so far is consistent; waiting longer than promised is worse than stopping here.
        log.error("shutdown_deadline_passed", seconds=deadline_s)
        faulthandler.dump_traceback()  # what all threads are doing, for whoever looks into it
        os._exit(1)

    def handle(number: int, _frame: FrameType | None) -> None:
        if timers:
            os._exit(128 + number)
        timers.append(threading.Timer(deadline_s, expire))
        timers[0].daemon = True
        timers[0].start()
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
