"""One shard while this process owns it: restored, opened, kept current and released, all on a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from indexer.failpoints import failpoint
from indexer.index import Index
from indexer.rebalance.compactor import out_of_bounds
from schemas.config import Config
from schemas.errors import BrokerAwayError, FencedError, StoreError
from streamer.generations import open_index, release_shard
from streamer.inbox import InboxClosedError
from streamer.metrics import Metrics
from streamer.opening import open_sink, open_source
from streamer.pipeline import Pipeline, Progress
from streamer.positions import resolve
from streamer.reader import Span
from streamer.restoring import restore_if_of_use
from streamer.sources.base import Partition, Source

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without

log = structlog.get_logger(__name__)

_TICK_S: Final = 0.02
_AGAIN_S: Final = 1.0  # a broker that did not answer for a shard is asked again


@dataclass(frozen=True, slots=True)
class Generation:
    """An index version, and the model it is built with."""

    name: str
    model: FrozenModel


class Step(NamedTuple):
    """What one batch held."""

    items: int
    engagements: int
    letters: int

    @property
    def records(self) -> int:
        """All of it."""
        return sum(self)


@dataclass(frozen=True, slots=True)
class Duties:
    """How a shard is run.

    Attributes:
        span: which records are read.
        build: build aside from the live index, which sends dead letters to the topic and tells Kafka where it is.
        resets: partition name -> where to go on, ``earliest``, ``latest`` or an offset, whatever the store says. What
            was done is taken out: a shard that goes and comes back is not reset again.
        begin: makes the store of a shard that is built aside, where there is none yet; told how to ask whether it is to
            give up. None: it begins empty.
        may_write: whether this process still owns the shard.
        on_durable: told the positions that survive a power loss.
        on_progress: told of each batch, by the thread of the shard.
    """

    span: Span = field(default_factory=Span)
    build: bool = False
    resets: dict[str, str] = field(default_factory=dict)
    begin: Callable[[Callable[[], bool]], None] | None = None
    may_write: Callable[[], bool] = lambda: True
    on_durable: Callable[[Mapping[Partition, int]], None] = lambda _: None
    on_progress: Callable[[Step], None] = lambda _: None


class Shard:
    """One shard, from its assignment to its release.

    Attributes:
        state: ``opening``, ``restoring``, ``re-encoding``, ``catching up``, ``ready``, ``waiting for the broker`` or
            ``the group``, ``closed``.
        serving: whether it is of the live index; else it is built aside, and its end is not that of the daemon.
        held: it waits with what it has read, until the one that served before has ended.
        index, pipeline: while it is open.
        progress: of its pipeline, also when that has ended.
        error: what ended it, if anything did.
    """

    def __init__(
        self,
        number: int,
        generation: Generation,
        config: Config,
        duties: Duties,
        metrics: Metrics,
        after: Collection[Shard] = (),
    ) -> None:
        self.number = number
        self.generation = generation
        self.index: Index | None = None
        self.pipeline: Pipeline | None = None
        self.progress = Progress()
        self.error: BaseException | None = None
        self._config = config
        self._duties = duties
        self._metrics = metrics
        self._after = after
        self._phase = "opening"
        self.serving = not duties.build
        self.held = False
        self._stopping = self._abandoned = self._released = False
        self._open = threading.Lock()
        self._beginning = threading.Lock()  # to write: with which sink is decided once
        self._pause = threading.Event()
        self._away: str | None = None
        self._told = Step(0, 0, 0)
        self._repeated = 0
        self._offsets: dict[str, int] = {}
        self._was_stuck = False
        self._resets = dict(duties.resets)
        self._phase_since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"shard-{number}", daemon=True)

    def start(self) -> None:
        """Begin on its own thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for a graceful end."""
        self._stopping = True
        self._pause.set()
        if self.pipeline is not None:
            self.pipeline.stop()

    def abandon(self) -> None:
        """Ask for an end without applying what is queued: another process may own the shard."""
        self._stopping = self._abandoned = True
        self._pause.set()
        if self.pipeline is not None:
            self.pipeline.abandon()

    def join(self, deadline_s: float) -> bool:
        """Wait for the end; whether it came."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline_s))
        return not self._thread.is_alive()

    @property
    def state(self) -> str:
        """Where it is in its life."""
        if self._phase == "open":
            return "ready" if self.ready else "catching up"
        return self._phase

    @property
    def ready(self) -> bool:
        """Whether it has caught up with its source once."""
        return self.pipeline is not None and self.pipeline.reader.caught_up

    @property
    def repeated(self) -> int:
        """Records passed over because the store has them."""
        return self._repeated if self.pipeline is None else self.pipeline.reader.repeated

    @property
    def offsets(self) -> dict[str, int]:
        """Where its store stands, or stood when it was closed."""
        return self._offsets if self.index is None else dict(self.index.view.positions)

    @property
    def letters_at(self) -> int | None:
        """Where its dead-letter sink stood after the last batch; None if that is not known."""
        return None if self.index is None else self.index.view.totals.dead_letter_position

    @property
    def waiting(self) -> bool:
        """Whether its writer takes no batches now, and has applied those it took."""
        return self.pipeline is not None and self.pipeline.progress.waits_for is not None

    @property
    def owned(self) -> bool:
        """Whether no other process can own it now."""
        return self._duties.may_write()

    def lag(self) -> dict[str, int]:
        """Records each partition is behind its end, as last asked; nothing while it is not open."""
        pipeline = self.pipeline
        return {} if pipeline is None else pipeline.lag()

    def turned_s(self) -> float:
        """Seconds since its writer turned; 0 while there is none."""
        opened = self.pipeline is not None and self._phase == "open"
        return time.monotonic() - self.progress.turned_at if opened else 0.0

    def serve(self, letters_at: int | None) -> None:
        """From being built aside to being the live index: letters go to the topic, and Kafka is told.

        Args:
            letters_at: from where in the topic letters of its next records may be found; None: anywhere.

        Raises:
            FacetstreamError: if the dead-letter topic cannot be opened.
        """
        with self._beginning:
            pipeline = self.pipeline
            if pipeline is not None and self._config.source.kind == "kafka":  # a file is a generation's own
                sink = open_sink(self._config, self.generation.name, self.number)
                try:
                    pipeline.use_sink(sink, letters_at)
                except InboxClosedError:  # it ended meanwhile, and its error is told as any other
                    sink.close()
            self.serving, self.held = True, False

    @contextmanager
    def held_open(self) -> Iterator[Index]:
        """Its index, which stays open meanwhile.

        Raises:
            StoreError: if it is not open.
        """
        with self._open:
            if self.index is None:
                raise StoreError(f"shard {self.number} is not open now ({self.state}); try again")
            yield self.index

    def watch(self) -> None:
        """Tell when it stops making progress, and when it goes on."""
        reason = self._stuck()
        if reason is not None and not self._was_stuck:
            log.warning("no_progress", shard=self.number, generation=self.generation.name, reason=reason)
        elif reason is None and self._was_stuck:
            log.info("progress_again", shard=self.number, generation=self.generation.name)
        self._was_stuck = reason is not None

    def _stuck(self) -> str | None:
        """Why it makes no progress; None while it does, or has nothing to do."""
        if self.pipeline is not None and self._phase == "open":
            return self.pipeline.stuck()
        seconds = time.monotonic() - self._phase_since
        slow = self._phase in {"opening", "restoring"} and seconds > self._config.http.progress_after_s
        return self._away or (f"{self._phase} for {seconds:.0f} s" if slow else None)

    def status(self) -> dict[str, Any]:
        """What ``/status`` says of it."""
        index, pipeline = self.index, self.pipeline
        document: dict[str, Any] = {"shard": self.number, "generation": self.generation.name, "state": self.state}
        if index is None or pipeline is None:
            return document | {"progressing": self._stuck() is None, "stuck": self._stuck()}
        stuck, progress = pipeline.stuck(), pipeline.progress
        return document | {
            "alive": self.turned_s() < self._config.http.live_after_s,
            "progressing": stuck is None,
            "stuck": stuck,
            "seconds_since_batch": round(time.monotonic() - progress.applied_at, 3),
            "records": progress.records,
            "repeated": self.repeated,
            "lag": self.lag(),
            "offsets": dict(index.view.positions),
            "items_live": index.view.totals.items_live,
            "out_of_bounds": out_of_bounds(index.view),
            "splits": index.view.totals.splits,
            "merges": index.view.totals.merges,
        }

    # -- on its own thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for before in self._after:
                while not before.join(_TICK_S):
                    pass  # also when we are to end: who waits for us waits for it
            while not self._stopping and not self._keep():
                self._pause.wait(_AGAIN_S)
        except BaseException as error:  # noqa: BLE001  # the daemon's thread raises it
            self.error = error
        finally:
            self._after = ()
            self._phase = "closed"

    def _keep(self) -> bool:
        """Keep the shard until it is asked to end; False if that is to be tried again, while other shards go on."""
        bounded = self._duties.span.to_end or self._duties.span.stop is not None
        if not bounded and not self._duties.may_write():
            self._phase, self._away = "waiting for the group", "the consumer group has not confirmed that it is ours"
            return False
        if self._duties.begin is not None:
            self._phase = "re-encoding"
            self._duties.begin(lambda: self._stopping)
            if self._stopping:
                if self._released:  # lost meanwhile: a store may have appeared
                    self.release()
                return True
        try:
            source = open_source(self._config, follow=not bounded, shard=self.number)
            try:
                if not self._duties.build:
                    self._phase = "restoring"
                    restore_if_of_use(self._config, self.generation.name, self.generation.model, self.number, source)
                if not self._stopping:
                    self._keep_current(source)
            finally:
                source.close()
        except BrokerAwayError as error:
            if bounded:
                raise
            self._phase, self._away = "waiting for the broker", str(error)
            return False
        except FencedError as error:
            if bounded or self._duties.may_write():
                raise
            # Most likely the group will say in a moment that the shard is lost; if not, it is opened again.
            log.warning("shard_fenced", shard=self.number, generation=self.generation.name, reason=str(error))
            return False
        return True

    def _keep_current(self, source: Source) -> None:
        config, name = self._config, self.generation.name
        self._phase = "opening"
        with open_index(config, self.generation.model, self.number, name) as index:
            if self._released:  # lost meanwhile: opening took the mark off again
                self.release()
            if self._abandoned:
                return
            failpoint("shard.opened")
            try:
                self._reset(index, source)
                self._pump(index, source)
            finally:
                failpoint("shard.closing")
                with self._open:  # a checkpoint that is being taken needs the store
                    self._repeated, self._offsets = self.repeated, self.offsets
                    self.pipeline = self.index = None

    def _pump(self, index: Index, source: Source) -> None:
        with self._beginning:
            pipeline = self._pipeline(index, source)
            self.index, self.pipeline, self.progress, self._told = index, pipeline, pipeline.progress, Step(0, 0, 0)
        if self._stopping:  # asked before there was a pipeline to ask
            (pipeline.abandon if self._abandoned else pipeline.stop)()
        log.info(
            "shard_opened",
            shard=self.number,
            generation=self.generation.name,
            live=index.view.totals.items_live,
            offsets=index.view.positions,
        )
        self._phase, self._away = "open", None
        pipeline.run()
        log.info(
            "shard_closed",
            shard=self.number,
            generation=self.generation.name,
            records=pipeline.progress.records,
            offsets=index.view.positions,
        )

    def _pipeline(self, index: Index, source: Source) -> Pipeline:
        duties = self._duties
        return Pipeline(
            index,
            source,
            open_sink(self._config, self.generation.name, self.number, build=not self.serving),
            self.generation.model,
            self._config,
            span=duties.span,
            shard=self.number,
            metrics=self._metrics,
            on_progress=self._count,
            on_durable=self._tell_durable,
            may_write=lambda: duties.may_write() and not self.held,
        )

    def _count(self, progress: Progress) -> None:
        now = Step(progress.items, progress.engagements, progress.letters)
        self._duties.on_progress(Step(*(after - before for after, before in zip(now, self._told, strict=True))))
        self._told = now

    def _tell_durable(self, positions: Mapping[Partition, int]) -> None:
        if self.serving and not self._abandoned:
            self._duties.on_durable(positions)

    def _reset(self, index: Index, source: Source) -> None:
        mine = {str(partition): partition for partition in source.partitions()}
        # Each once: the shard may go and come back, and the records since must not be read again.
        asked = {name: where for name in mine if (where := self._resets.pop(name, None)) is not None}
        if asked:
            found = {name: resolve(self._config, [mine[name]], where)[mine[name]] for name, where in asked.items()}
            reset = {"kind", *(mine[name].stream.value for name in asked)}  # the other stream keeps its topic's id
            identity = {name: told for name, told in source.identity().items() if name in reset}
            index.reset(found, f"asked for: {asked}", identity)
            log.warning("offsets_reset", shard=self.number, offsets=found)

    def release(self) -> None:
        """Note on disk that another process owns the shard now.

        Raises:
            StoreError: if the disk refuses.
        """
        self._released = True  # first: whoever opens it meanwhile takes the mark off, and looks here then
        release_shard(self._config.data_dir, self.number)
