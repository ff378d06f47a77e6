"""Events from a log on disk (:mod:`streamer.eventlog_format`); a record's offset is its line number, from 0.

Records have no keys, and a tombstone (null value) cannot be written: delete an item with an ``item.deleted``
event. What counts as a line is told in :mod:`streamer.sources.eventlog_lines`.
"""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING, Final

from schemas.errors import FacetstreamError, UsageError
from streamer.eventlog_format import discover
from streamer.eventlog_writer import EventLogWriter
from streamer.sources.base import Partition, Records, Stream
from streamer.sources.eventlog_lines import LineReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from streamer.eventlog_format import LogFile

__all__ = ["EventLogSource", "EventLogWriter"]

MAX_LINE_BYTES: Final = 64 << 20
_GROWTH_POLL_S: Final = 0.005
_CHANGE_CHECK_S: Final = 0.25


class EventLogSource:
    """A :class:`~streamer.sources.base.Source` over an event log.

    The set of partitions is fixed when the source is made. While following, a file that appears later, is cut
    short or is replaced stops the source with an error instead of being passed over.

    Args:
        path: the log's directory.
        follow: wait for the files to grow. Otherwise each is read to its end once.
        shard: read only the files of this number; a missing engagements file holds nothing.
        max_line_bytes: a longer line is returned cut to ``max_line_bytes + 1`` bytes and its rest is skipped,
            so that no line can exhaust memory and a size check downstream still sees that it is too long.

    Raises:
        UsageError: if there is no log, its layout is wrong, a file cannot be opened, or a compressed one is
            followed.
    """

    def __init__(
        self,
        path: Path,
        *,
        follow: bool = False,
        max_line_bytes: int = MAX_LINE_BYTES,
        shard: int | None = None,
    ) -> None:
        self.path = path
        self.follow = follow
        self._shard = shard
        files = self._files()
        for file in files:
            if follow and file.compression is not None:
                raise UsageError(f"{file.path} is compressed and cannot be followed; decompress it first")
        self._readers = {
            file.partition: LineReader(file, follow=follow, max_line_bytes=max_line_bytes) for file in files
        }
        self._paused: set[Partition] = set()
        self._turn = 0
        self._closed = Event()
        self._next_check = 0.0
        try:
            self.seek({})
        except FacetstreamError:
            self.close()
            raise

    @property
    def exhausted(self) -> bool:
        """Whether no poll can return anything any more; never true while following."""
        return all(reader.exhausted for reader in self._readers.values())

    def partitions(self) -> list[Partition]:
        """One for each file, sorted."""
        return sorted(self._readers)

    def identity(self) -> dict[str, str]:
        """What kind of source this is; a log has no identity beyond its content."""
        return {"kind": "eventlog"}

    def seek(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        """Go on reading each partition at the given line; those not named start at the beginning.

        Raises:
            UsageError: if a position lies beyond what its file holds, or its file is not there.
        """
        for partition, offset in positions.items():
            if partition not in self._readers and offset > 0:
                raise UsageError(
                    f"event log {self.path} has no file for partition {partition}, of which {offset} records "
                    "are stored as read; put it back or start with an empty store"
                )
        for partition, reader in self._readers.items():
            reader.seek(positions.get(partition, 0))
        return {partition: positions.get(partition, 0) for partition in self._readers}

    def poll(self, max_records: int, timeout_s: float) -> list[Records]:
        """Up to ``max_records`` records in all, shared evenly among the partitions that have some.

        Waits up to ``timeout_s`` seconds when there are none, except when :attr:`exhausted`.

        Raises:
            UsageError: if a file is damaged, or while following changed otherwise than by growing.
            DependencyError: if the disk fails.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self._closed.is_set():
                raise UsageError(f"the source of event log {self.path} is closed")
            self._notice_changes()
            records = self._take(max_records)
            left = deadline - time.monotonic()
            if records or left <= 0 or self.exhausted:
                return records
            self._closed.wait(min(left, _GROWTH_POLL_S))

    def end_offsets(self) -> dict[Partition, int]:
        """The number of records of each partition; while following, of complete lines."""
        return {partition: reader.end_offset() for partition, reader in sorted(self._readers.items())}

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Stop returning records of these partitions, without losing position."""
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Undo :meth:`pause`."""
        self._paused.difference_update(partitions)

    def close(self) -> None:
        """Close the files; idempotent."""
        self._closed.set()
        for reader in self._readers.values():
            reader.close()

    def _files(self) -> list[LogFile]:
        files = discover(self.path)
        if self._shard is None:
            return files
        mine = [file for file in files if file.partition.number == self._shard]
        if not any(file.partition.stream is Stream.ITEMS for file in mine):
            raise UsageError(f"event log {self.path} has no items file of shard {self._shard}")
        return mine

    def _take(self, max_records: int) -> list[Records]:
        active = [reader for key, reader in sorted(self._readers.items()) if key not in self._paused]
        if not active:
            return []
        # the first of last time comes last now, or a small max_records would starve the later partitions
        self._turn = (self._turn + 1) % len(active)
        active = active[self._turn :] + active[: self._turn]
        taken: dict[Partition, list[bytes]] = {}
        left = max_records
        while active and left > 0:
            share = max(1, left // len(active))
            still_active = []
            for reader in active:
                wanted = min(share, left)
                lines = reader.take(wanted)
                left -= len(lines)
                if lines:
                    taken.setdefault(reader.file.partition, []).extend(lines)
                if len(lines) == wanted:
                    still_active.append(reader)
            active = still_active
        return [self._records(partition, lines) for partition, lines in taken.items()]

    def _records(self, partition: Partition, lines: list[bytes]) -> Records:
        end = self._readers[partition].position
        return Records(
            partition,
            offsets=range(end - len(lines), end),
            keys=[None] * len(lines),
            values=lines,
            next_offset=end,
        )

    def _notice_changes(self) -> None:
        now = time.monotonic()
        if not self.follow or now < self._next_check:
            return
        self._next_check = now + _CHANGE_CHECK_S
        there = {file.path for file in self._files()}
        followed = {reader.file.path for reader in self._readers.values()}
        if new := there - followed:
            raise UsageError(f"{min(new)} appeared in the event log while it is followed; start again to read it")
        for reader in self._readers.values():
            reader.check_growing()
