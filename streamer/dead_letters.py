"""Records set aside, with why: in a topic beside the source topics, or in a file beside the store.

A sink's ``write`` returns when the letters are durable, and only then may the source offset move past their records.
After a crash in between the same records are set aside again, yet each letter is there once: the store keeps where the
sink stood. :meth:`FileDeadLetters.restore` cuts what came after; :meth:`TopicDeadLetters.restore` reads it, and letters
found there are not sent again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from pydantic import ValidationError

from indexer.failpoints import failpoint
from schemas.dead_letters import DeadLetter
from schemas.errors import StoreError, UsageError
from streamer.dead_letter_records import chunks_of, read_topic
from streamer.dead_letter_topic import TopicDeadLetters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = [
    "DeadLetterSink",
    "FileDeadLetters",
    "NoDeadLetters",
    "TopicDeadLetters",
    "read_file",
    "read_topic",
]

log = structlog.get_logger(__name__)

_BLOCK_BYTES: Final = 1 << 16


class DeadLetterSink(Protocol):
    """Where the writer puts records that it cannot apply."""

    @property
    def position(self) -> int | None:
        """To be stored with the source offsets and given to :meth:`restore`; None while nothing is known."""
        ...

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Keep the letters; they are durable when this returns."""
        ...

    def restore(self, position: int | None) -> None:
        """Take back what was written after ``position``, before anything is written; None: nothing was ever stored."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...


class NoDeadLetters:
    """Keeps none: of an index built beside the live one, which sends the letters of the same records to the topic."""

    def __init__(self) -> None:
        self._position: int | None = None

    @property
    def position(self) -> int | None:
        """As it was given to :meth:`restore`: the index may have written to the topic before."""
        return self._position

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Drop them."""

    def restore(self, position: int | None) -> None:
        """Remember the position."""
        self._position = position

    def close(self) -> None:
        """Nothing to release."""


class FileDeadLetters:
    """JSON lines in a file that this process alone appends to.

    Raises:
        StoreError: here and in the methods, if the file cannot be opened, written or synced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)  # or a power cut forgets the file, whatever was synced into it
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreError(f"cannot open the dead-letter file {path}: {error}") from error
        self._open = True
        self._position = os.fstat(self._file).st_size

    @property
    def position(self) -> int:
        """Length of the file in bytes after the last :meth:`write` or :meth:`restore`."""
        return self._position

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Append one line each and sync the file; wholly or, when the disk is full, not at all."""
        if not letters:
            return
        failpoint("letters.before")
        end = self._position
        try:
            for chunk in chunks_of(letters):
                lines = b"".join(letter.model_dump_json().encode() + b"\n" for letter in chunk)
                written = 0
                while written < len(lines):
                    written += os.pwrite(self._file, memoryview(lines)[written:], end + written)
                end += written
            os.fdatasync(self._file)
        except OSError as error:
            # A torn line would damage the next one too, if the disk gets room again and the writer goes on.
            with suppress(OSError):  # the first error is the one to tell
                os.ftruncate(self._file, self._position)
            raise StoreError(
                f"cannot write {len(letters)} dead letters to {self.path}: {error}; free disk space, then start again"
            ) from error
        self._position = end
        failpoint("letters.after")

    def restore(self, position: int | None) -> None:
        """Cut the file to ``position`` bytes; None keeps all whole lines.

        A file that is shorter was emptied or replaced by someone: it is kept as it is, which is logged.
        """
        size = self._position
        whole = _end_of_last_line(self._file, size if position is None else min(position, size))
        if position is not None and size < position:
            log.warning("dead_letter_file_shrank", path=str(self.path), stored_position=position, size=size)
        if whole < size:
            log.info("dead_letters_cut", path=str(self.path), bytes=size - whole)
            try:
                os.ftruncate(self._file, whole)
                os.fsync(self._file)
            except OSError as error:
                raise StoreError(f"cannot cut the dead-letter file {self.path}: {error}") from error
        self._position = whole

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._open:
            self._open = False
            os.close(self._file)


def read_file(path: Path) -> Iterator[DeadLetter]:
    """The letters in a file of :class:`FileDeadLetters`, oldest first; none if there is no file.

    Damaged lines are logged with their number and passed over. A last line without its end is being written just now.

    Raises:
        UsageError: if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    try:
                        yield DeadLetter.model_validate_json(line)
                    except ValidationError as error:
                        log.warning("dead_letter_damaged", path=str(path), line=number, error=error.errors()[0]["msg"])
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot read the dead-letter file {path}: {error}") from error


def _end_of_last_line(file: int, size: int) -> int:
    """Where the last whole line of the first ``size`` bytes ends; a crash may have torn the one after it."""
    while size:
        start = max(0, size - _BLOCK_BYTES)
        newline = os.pread(file, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0
