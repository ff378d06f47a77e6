"""The reading side: source -> decode -> align -> encode -> inbox, on a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from schemas.config import Config
from schemas.errors import UsageError
from streamer.align import Aligned, Aligner
from streamer.batching import BATCH_BYTES, Prepared, cut, prepare
from streamer.decode import Decoder
from streamer.inbox import Inbox
from streamer.sources.base import Partition, Source, clip

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without

log = structlog.get_logger(__name__)

_POLL_S: Final = 0.05
_SOON_S: Final = 0.005
_ENDS_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Span:
    """Which records are read.

    Attributes:
        start: partition -> first offset; those not named go on where the store stands, else at the oldest record.
        stop: partition -> offset after the last, ends the reading; None follows the source.
        to_end: stop at the ends found at the start.
        rate: records per second at most.
    """

    start: Mapping[Partition, int] = field(default_factory=dict)
    stop: Mapping[Partition, int] | None = None
    to_end: bool = False
    rate: float | None = None


class Reader:
    """Reads a source until stopped, or to the end of its span.

    Records that the store has applied already are passed over, whatever the span: that is what makes a replay change
    nothing. The source belongs to this thread.

    Attributes:
        ends: where each partition ended when last asked.
        caught_up: whether every partition has reached its end once.
        repeated: records passed over because the store has them.
    """

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        model: FrozenModel,
        inbox: Inbox[Prepared],
        config: Config,
        span: Span,
    ) -> None:
        self._source = source
        self._decoder = decoder
        self._model = model
        self._inbox = inbox
        self._config = config
        self._span = span
        self._stopping = False
        self._applied: Mapping[Partition, int] = {}
        self._read: dict[Partition, int] = {}
        self._stop_at: Mapping[Partition, int] | None = None
        self._asked_at = -_ENDS_S
        self.ends: dict[Partition, int] = {}
        self.caught_up = False
        self.repeated = 0

    def stop(self) -> None:
        """Stop after the poll in progress."""
        self._stopping = True

    def begin(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        """Find the place to start. Call it once, before :meth:`run`.

        Args:
            positions: where the store stands.

        Returns:
            Where each partition starts.

        Raises:
            UsageError: if the span starts beyond where the store stands.
            BrokerError: if the source does not have the place, or does not answer.
        """
        start = dict(positions)
        for partition, offset in self._span.start.items():
            if partition in positions and offset > positions[partition]:
                raise UsageError(
                    f"the store stands at {positions[partition]} of {partition}; starting at {offset} would leave out "
                    f"{offset - positions[partition]} records: start at {positions[partition]} or before"
                )
            start[partition] = offset
        self._applied = positions
        self._read = self._source.seek(start)
        self.ends = self._source.end_offsets()
        if self._span.stop is not None:
            self._stop_at = {partition: self._span.stop.get(partition, 0) for partition in self._read}
        elif self._span.to_end:
            self._stop_at = dict(self.ends)
        return dict(self._read)

    def run(self) -> None:
        """Thread body; what goes wrong reaches the writer through the inbox."""
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001  # handed to the writer, which raises it
            self._inbox.end(error)
        else:
            self._inbox.end()

    def _loop(self) -> None:
        aligner = Aligner(self._source.partitions())
        blocked_since = time.monotonic()
        paused: set[Partition] = set()
        settings, size = self._config.source, self._config.writer.batch_records
        backlog: list[Aligned] = []
        began, taken = time.monotonic(), 0
        while not self._stopping:
            wait_s = _SOON_S if aligner.waiting() or backlog else _POLL_S
            for fetched in self._source.poll(settings.max_poll_records, wait_s):
                partition = fetched.partition
                records, repeated = clip(
                    fetched,
                    self._applied.get(partition, 0),
                    None if self._stop_at is None else self._stop_at[partition],
                )
                self.repeated += repeated
                taken += len(fetched)
                start = self._read[partition]
                self._read[partition] = max(start, records.next_offset)
                if len(records) or records.next_offset > self._applied.get(partition, 0):
                    aligner.push(self._decoder.decode(records, start + records.lost, records.lost))
            released = aligner.release(self._at_end())
            wait_s = settings.align_wait_s
            if wait_s and not released and aligner.waiting() and time.monotonic() - blocked_since > wait_s:
                # A partition lags but gives nothing, and we were told not to stand still for it.
                released = aligner.release(self._read.keys() - self._with_records(aligner))
            grew, backlog = bool(released), backlog + released
            # While the writer has enough to do, a batch may grow: large ones cost less.
            waits = grew and len(self._inbox) and sum(map(len, backlog)) < size and not _large(backlog)
            if backlog and not waits:
                for parts in cut(backlog, size):
                    if not self._inbox.put(prepare(parts, self._model)):
                        return
                backlog = []
            if released or not aligner.waiting():
                blocked_since = time.monotonic()  # after the writer took them: its time is not the partition's
            self._hold_back(aligner, paused)
            if self._stop_at is not None and not aligner.waiting() and not backlog and self._reached(self._stop_at):
                return
            if self._span.rate is not None:
                self._slow_down(began + taken / self._span.rate)

    def _slow_down(self, until: float) -> None:
        while not self._stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_S))

    def _at_end(self) -> Collection[Partition]:
        """Partitions with nothing more to read for now, by ends asked at most ``_ENDS_S`` ago."""
        behind = self._behind()
        if not behind and time.monotonic() - self._asked_at > _ENDS_S:
            self.ends = self._source.end_offsets()
            self._asked_at = time.monotonic()
            behind = self._behind()
        if not behind:
            self.caught_up = True
        return self._read.keys() - set(behind)

    def _behind(self) -> list[Partition]:
        stop = self._stop_at
        return [
            partition
            for partition, at in self._read.items()
            if at < self.ends.get(partition, 0) and (stop is None or at < stop[partition])
        ]

    def _reached(self, ends: Mapping[Partition, int]) -> bool:
        return all(self._read[partition] >= end for partition, end in ends.items())

    def _with_records(self, aligner: Aligner) -> set[Partition]:
        return {partition for partition in self._read if aligner.held(partition)}

    def _hold_back(self, aligner: Aligner, paused: set[Partition]) -> None:
        """Pause partitions that ran ahead in event time, or are at their stop: bounds memory."""
        room, stop = 4 * self._config.source.max_poll_records, self._stop_at
        ahead = {
            partition
            for partition, at in self._read.items()
            if aligner.held(partition) > room
            or aligner.held_bytes(partition) > 4 * BATCH_BYTES
            or (stop is not None and at >= stop[partition])
        }
        if ahead - paused:
            self._source.pause(sorted(ahead - paused))
        if paused - ahead:
            self._source.resume(sorted(paused - ahead))
        paused.clear()
        paused.update(ahead)


def _large(backlog: list[Aligned]) -> bool:
    """Whether waiting for more would take memory for more than a batch."""
    return sum(aligned.decoded.nbytes for aligned in backlog) >= BATCH_BYTES
