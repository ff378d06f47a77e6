"""The reading side: source -> decode -> align -> encode -> inbox, on a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

import structlog

from schemas.config import Config
from streamer.align import Aligner
from streamer.batching import Prepared, cut, prepare
from streamer.decode import Decoder
from streamer.inbox import Inbox
from streamer.sources.base import Partition, Source

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without

log = structlog.get_logger(__name__)

_POLL_S: Final = 0.05
_ENDS_S: Final = 0.25


class Reader:
    """Reads a source until stopped, or until the ends it found at the start.

    The source belongs to this thread: positions to commit are handed over by :meth:`commit_later`.

    Attributes:
        ends: where each partition ended when last asked.
        caught_up: whether every partition has reached its end once.
    """

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        model: FrozenModel,
        inbox: Inbox[Prepared],
        config: Config,
        *,
        to_end: bool,
    ) -> None:
        self._source = source
        self._decoder = decoder
        self._model = model
        self._inbox = inbox
        self._config = config
        self._to_end = to_end
        self._stopping = False
        self._commit: Mapping[Partition, int] | None = None
        self._read: dict[Partition, int] = {}
        self._asked_at = -_ENDS_S
        self.ends: dict[Partition, int] = {}
        self.caught_up = False

    def stop(self) -> None:
        """Stop after the poll in progress."""
        self._stopping = True

    def commit_later(self, positions: Mapping[Partition, int]) -> None:
        """Positions that are durable; committed to the source for lag tools at the next turn."""
        self._commit = positions

    def run(self, positions: Mapping[Partition, int]) -> None:
        """Thread body: read from ``positions`` on; what goes wrong reaches the writer through the inbox."""
        try:
            self._loop(positions)
        except BaseException as error:  # noqa: BLE001  # handed to the writer, which raises it
            self._inbox.end(error)
        else:
            self._inbox.end()

    def _loop(self, positions: Mapping[Partition, int]) -> None:
        partitions = self._source.partitions()
        aligner = Aligner(partitions)
        self._read = {partition: positions.get(partition, 0) for partition in partitions}
        self._source.seek(positions)
        self.ends = self._source.end_offsets()
        stop_at = dict(self.ends) if self._to_end else None
        blocked_since = time.monotonic()
        paused: set[Partition] = set()
        settings = self._config.source
        while not self._stopping:
            for records in self._source.poll(settings.max_poll_records, _POLL_S if not aligner.waiting() else 0.005):
                aligner.push(self._decoder.decode(records))
                self._read[records.partition] = records.next_offset
            released = aligner.release(self._at_end())
            if not released and aligner.waiting() and time.monotonic() - blocked_since > settings.align_wait_s:
                # A partition lags but gives nothing: its leader may be gone. Going on beats standing still.
                released = aligner.release(self._read.keys() - self._with_records(aligner))
            for parts in cut(released, self._config.writer.batch_records):
                if not self._inbox.put(prepare(parts, self._model)):
                    return
            if released or not aligner.waiting():
                blocked_since = time.monotonic()  # after the writer took them: its time is not the partition's
            self._hold_back(aligner, paused)
            if self._commit is not None:
                commit, self._commit = self._commit, None
                self._source.commit(commit)
            if stop_at is not None and not aligner.waiting() and self._reached(stop_at):
                return

    def _at_end(self) -> Collection[Partition]:
        """Partitions with nothing more to read for now, by ends asked at most ``_ENDS_S`` ago."""
        behind = [partition for partition, at in self._read.items() if at < self.ends.get(partition, 0)]
        if not behind and time.monotonic() - self._asked_at > _ENDS_S:
            self.ends = self._source.end_offsets()
            self._asked_at = time.monotonic()
            behind = [partition for partition, at in self._read.items() if at < self.ends.get(partition, 0)]
        if not behind:
            self.caught_up = True
        return self._read.keys() - set(behind)

    def _reached(self, ends: Mapping[Partition, int]) -> bool:
        return all(self._read[partition] >= end for partition, end in ends.items())

    def _with_records(self, aligner: Aligner) -> set[Partition]:
        return {partition for partition in self._read if aligner.held(partition)}

    def _hold_back(self, aligner: Aligner, paused: set[Partition]) -> None:
        """Pause partitions that ran ahead in event time: bounds memory."""
        room = 4 * self._config.source.max_poll_records
        ahead = {partition for partition in self._read if aligner.held(partition) > room}
        if ahead - paused:
            self._source.pause(sorted(ahead - paused))
        if paused - ahead:
            self._source.resume(sorted(paused - ahead))
        paused.clear()
        paused.update(ahead)
