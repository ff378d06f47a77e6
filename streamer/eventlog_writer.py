"""Writing a new event log, wholly or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import orjson
from pydantic import BaseModel

from schemas.errors import DependencyError, UsageError
from streamer.eventlog_format import FILE_NAME, MAX_PARTITIONS, PARTIAL_SUFFIX, partition_of
from streamer.sources.base import Stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

_BUFFER_BYTES: Final = 1 << 20


class EventLogWriter:
    """Writes a new event log; use it as a context manager.

    Records go to files named ``*.jsonl.partial``, which get their names when the block ends without an
    exception. As reading refuses a directory with a partial file in it, no crash leaves a log that looks
    whole but is not. Both streams get their files even when they stay empty, so that the log can be followed.

    Args:
        path: the directory; made when missing.
        partitions: files per stream; one makes ``items.jsonl``, more make ``items-00000.jsonl`` and so on.
        overwrite: replace a log that is there; anything else in the directory is an error even then.

    Raises:
        UsageError: if the directory is not empty, or cannot be written.
    """

    def __init__(self, path: Path, partitions: int = 1, *, overwrite: bool = False) -> None:
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise UsageError(f"an event log has 1 to {MAX_PARTITIONS} partitions, not {partitions}")
        self.path = path
        self.partitions = partitions
        self._old = _make_room(path, overwrite=overwrite)
        self._files: dict[Stream, list[BinaryIO]] = {}
        try:
            for stream in Stream:
                names = (
                    [f"{stream}.jsonl"]
                    if partitions == 1
                    else [f"{stream}-{number:05d}.jsonl" for number in range(partitions)]
                )
                self._files[stream] = []
                for name in names:
                    partial = path / (name + PARTIAL_SUFFIX)
                    self._files[stream].append(partial.open("wb", buffering=_BUFFER_BYTES))
        except OSError as err:
            self.discard()
            raise UsageError(f"cannot write event log {path}: {err}") from err

    def write(self, event: BaseModel | Mapping[str, Any]) -> None:
        """Append one event, a pydantic model or a mapping of JSON values, to the stream its ``type`` names.

        Raises:
            UsageError: if it has no ``type`` or ``item_id``.
        """
        if isinstance(event, BaseModel):
            event = event.model_dump(exclude_none=True)
        kind, item_id = event.get("type"), event.get("item_id")
        if not isinstance(kind, str) or not isinstance(item_id, str):
            raise UsageError(f"an event needs a type and an item_id, this has {kind!r} and {item_id!r}")
        stream = Stream.ENGAGEMENTS if kind == "engagement" else Stream.ITEMS
        self.write_lines(stream, [orjson.dumps(event)], partition_of(item_id, self.partitions))

    def write_lines(self, stream: Stream, lines: Sequence[bytes], partition: int = 0) -> None:
        """Append records that are already encoded, (n,) without newlines, to one partition of a stream.

        Raises:
            UsageError: if a line contains a newline, or there is no such partition.
            DependencyError: if the disk is full or fails.
        """
        if not 0 <= partition < self.partitions:
            raise UsageError(f"partition {partition} is outside the log's {self.partitions}")
        if not lines:
            return
        data = b"\n".join(lines) + b"\n"
        if data.count(b"\n") != len(lines):
            raise UsageError("a record with a newline in it would become two; encode it as one line of JSON")
        try:
            self._files[stream][partition].write(data)
        except OSError as err:
            raise DependencyError(f"cannot write event log {self.path}: {err}") from err

    def close(self) -> None:
        """Make the log durable and visible; idempotent.

        Raises:
            DependencyError: if the disk is full or fails; the partial files are removed then.
        """
        files = [file for stream_files in self._files.values() for file in stream_files]
        try:
            for file in files:
                file.flush()
                os.fsync(file.fileno())
                file.close()
            if files:
                for old in self._old:
                    old.unlink()
                for file in files:
                    os.replace(file.name, file.name.removesuffix(PARTIAL_SUFFIX))  # noqa: PTH105 - names, not paths
                _sync_directory(self.path)
        except OSError as err:
            self.discard()
            raise DependencyError(f"cannot finish event log {self.path}: {err}") from err
        self._files = {}

    def discard(self) -> None:
        """Give up: remove what was written; idempotent."""
        for stream_files in self._files.values():
            for file in stream_files:
                with suppress(OSError):  # a full disk fails again when the buffer is flushed; it is going anyway
                    file.close()
                with suppress(FileNotFoundError):  # already renamed by a close that failed half-way
                    os.unlink(file.name)  # noqa: PTH108 - a name, not a path
        self._files = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _make_room(path: Path, *, overwrite: bool) -> list[Path]:
    """Make directory ``path``; return the log files in it that the new log replaces."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        there = sorted(path.iterdir())
    except OSError as err:
        raise UsageError(f"cannot make event log {path}: {err}") from err
    if there and not overwrite:
        raise UsageError(
            f"{path} is not empty (it holds {there[0].name}); choose another directory, or give --overwrite"
        )
    for entry in there:
        if not FILE_NAME.fullmatch(entry.name.removesuffix(PARTIAL_SUFFIX)) or not entry.is_file():
            raise UsageError(f"{entry} is no event log file; overwriting replaces nothing but event logs")
    remains = [entry for entry in there if entry.name.endswith(PARTIAL_SUFFIX)]
    for entry in remains:
        entry.unlink()  # or the new log would look unfinished for ever
    return [entry for entry in there if entry not in remains]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
