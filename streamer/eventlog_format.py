"""The event log on disk: which files make one up, and how each is opened.

A log is a directory with ``items.jsonl`` and ``engagements.jsonl``, or with ``items-00000.jsonl``,
``items-00001.jsonl`` ... and ``engagements-00000.jsonl`` ..., one file a partition, one record a line.
A file may instead end in ``.jsonl.gz`` or ``.jsonl.zst``. A stream without any file has no partitions.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast

from schemas.errors import DependencyError, UsageError
from streamer.sources.base import Partition, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PARTIAL_SUFFIX: Final = ".partial"
FILE_NAME: Final = re.compile(r"(items|engagements)(?:-(\d{5}))?\.jsonl(\.gz|\.zst)?")
_MEANT_AS_LOG: Final = re.compile(r"(items|engagements)(?![A-Za-z]).*\.jsonl.*")
_COMPRESSIONS: Final[dict[str | None, Literal["gzip", "zstd"] | None]] = {
    None: None,
    ".gz": "gzip",
    ".zst": "zstd",
}
MAX_PARTITIONS: Final = 100_000  # what five digits in a file name can number


class ByteStream(Protocol):
    """What reading a log file needs of an open one, compressed or not."""

    def read(self, n: int, /) -> bytes:
        """Up to ``n`` bytes; none at the end."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


@dataclass(frozen=True, slots=True)
class LogFile:
    """One partition's file."""

    partition: Partition
    path: Path
    compression: Literal["gzip", "zstd"] | None

    def open(self) -> ByteStream:
        """Open for reading from the start; the bytes read are decompressed ones.

        Raises:
            UsageError: if the file cannot be opened.
        """
        try:
            if self.compression is None:
                return self.path.open("rb", buffering=0)
            if self.path.stat().st_size == 0:
                raise UsageError(f"{self.path} is empty: not a whole {self.compression} file; write it again")
            # pyarrow, because zstandard's own reader takes a truncated file for a shorter one
            from pyarrow import input_stream  # noqa: PLC0415 - its import is slow and most logs are plain

            return cast("ByteStream", input_stream(str(self.path), compression=self.compression))
        except OSError as err:
            raise UsageError(f"cannot open {self.path}: {err}; check the path and its permissions") from err

    def read(self, stream: ByteStream, n: int) -> bytes:
        """Up to ``n`` bytes of an open ``stream`` of this file; none at its end.

        Raises:
            UsageError: if the compressed data are damaged or cut short.
            DependencyError: if the disk fails.
        """
        try:
            return stream.read(n)
        except OSError as err:
            if self.compression is not None and err.errno is None:
                raise UsageError(
                    f"{self.path} is not a whole {self.compression} file ({err}); compress it again"
                ) from err
            raise DependencyError(f"cannot read {self.path}: {err}; check the disk") from err


def discover(path: Path) -> list[LogFile]:
    """The files of the log in directory ``path``, sorted by partition; there is at least one.

    Raises:
        UsageError: if ``path`` is no directory, holds no log, an unfinished one, two layouts at once, a gap
            in the partition numbers, a partition twice, or a file almost named like part of a log.
    """
    if not path.is_dir():
        raise UsageError(f"event log {path} is not a directory; give the one that holds items.jsonl")
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as err:
        raise UsageError(f"cannot list event log {path}: {err}") from err
    files: list[LogFile] = []
    for name in names:
        match = FILE_NAME.fullmatch(name)
        if match is None:
            _reject_near_miss(path / name)
            continue
        if not (path / name).is_file():
            raise UsageError(f"{path / name} is not a regular file; an event log consists of files")
        stream = Stream(match[1])
        partition = Partition(stream, topic=stream.value, number=int(match[2] or 0))
        files.append(LogFile(partition, path / name, _COMPRESSIONS[match[3]]))
    if not files:
        raise UsageError(
            f"event log {path} holds no items.jsonl, items-00000.jsonl or engagements files (or .gz, .zst)"
        )
    for stream in Stream:
        _check_numbers(path, stream, [file for file in files if file.partition.stream is stream])
    return sorted(files, key=lambda file: file.partition)


def _reject_near_miss(path: Path) -> None:
    if not _MEANT_AS_LOG.fullmatch(path.name):
        return
    if path.name.endswith(PARTIAL_SUFFIX):
        raise UsageError(f"{path} was left by an unfinished write; delete it and write the log again")
    # skipping it would lose its records without a word
    raise UsageError(
        f"{path} is not a name an event log may hold: use items.jsonl or items-00000.jsonl (five digits), "
        "likewise for engagements, each with .gz or .zst if compressed; rename it or move it away"
    )


def _check_numbers(path: Path, stream: Stream, files: Sequence[LogFile]) -> None:
    numbered = {file.path.name.startswith(f"{stream}-") for file in files}
    if len(numbered) > 1:
        raise UsageError(f"event log {path} holds both {stream}.jsonl and numbered {stream} files; keep one layout")
    counts = Counter(file.partition.number for file in files)
    for number in range(len(counts)):
        if number not in counts:
            raise UsageError(
                f"event log {path} lacks {stream}-{number:05d}.jsonl although {stream}-{max(counts):05d} is "
                "there; partitions are numbered from 0 without gaps"
            )
    for file in files:
        if counts[file.partition.number] > 1:
            raise UsageError(f"event log {path} holds partition {file.partition} twice, one is {file.path.name}")


def partition_of(item_id: str, partitions: int) -> int:
    """The partition an item and its engagements belong to: the CRC-32 of the id modulo ``partitions``."""
    return zlib.crc32(item_id.encode()) % partitions
