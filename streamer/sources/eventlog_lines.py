r"""The lines of a log file as records, split a block at a time.

Every line is a record, blank ones too, so that line numbers stay true whatever a line holds; what is no
event becomes a dead letter downstream. A line ends with ``\n`` or ``\r\n``, which is not part of the record.

When not following, the end of the file ends its last record, whether a newline is there or not. When
following, a line counts once its newline is written: until then a producer may be in the middle of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.errors import UsageError

if TYPE_CHECKING:
    from streamer.eventlog_format import ByteStream, LogFile

BLOCK_BYTES: Final = 1 << 20
_NEWLINE: Final = ord("\n")


class LineReader:
    """The lines of one file from a position on, split a block at a time; :meth:`seek` opens it.

    Args:
        file: what to read.
        follow: take only complete lines, and look again for more at the end.
        max_line_bytes: a longer line is taken as its first ``max_line_bytes + 1`` bytes.
        block_bytes: how much to read at once.

    Attributes:
        position: the number of the line that :meth:`take` returns next.
    """

    def __init__(self, file: LogFile, *, follow: bool, max_line_bytes: int, block_bytes: int = BLOCK_BYTES) -> None:
        self.file = file
        self.position = 0
        self._follow = follow
        self._max_line_bytes = max_line_bytes
        self._block_bytes = block_bytes
        self._stream: ByteStream | None = None
        self._bytes_read = 0
        self._inode = 0
        self._lines: list[bytes] = []  # split, of which the first _used are taken
        self._used = 0
        self._tail = bytearray()  # the line whose newline has not been read yet
        self._tail_is_taken = False
        self._ended = False
        self._counted = _Counted()

    @property
    def exhausted(self) -> bool:
        """The file ended, and all its lines are taken."""
        return self._ended and self._used == len(self._lines)

    def take(self, wanted: int) -> list[bytes]:
        """Up to ``wanted`` lines; fewer only if no more are there now."""
        taken: list[bytes] = []
        while len(taken) < wanted and self._fill():
            end = min(len(self._lines), self._used + wanted - len(taken))
            taken += self._lines[self._used : end]
            self._used = end
        self.position += len(taken)
        return taken

    def seek(self, line: int) -> None:
        """Go on at ``line``; one past the last is allowed, whether that line ended in a newline or not.

        Raises:
            UsageError: if there are fewer lines, or the file cannot be opened or decompressed.
        """
        self._reset()
        left, open_line = line, False
        while left > 0:
            block = self._read()
            if not block and left == 1 and open_line:
                # it was taken as the last record of a file not followed; what completes it is no new record
                self._tail_is_taken = True
                break
            if not block:
                raise UsageError(
                    f"{self.file.path} was truncated or replaced: the stored offset is {line}, but only "
                    f"{line - left + open_line} lines are there; put it back or start with an empty store"
                )
            newlines = np.frombuffer(block, np.uint8) == _NEWLINE
            count = int(np.count_nonzero(newlines))
            if count >= left:
                self._split(block[int(np.flatnonzero(newlines)[left - 1]) + 1 :])
            left = max(0, left - count)
            open_line = not block.endswith(b"\n")
        self.position = line

    def end_offset(self) -> int:
        """How many lines there are. Counts what was added since the last call."""
        self._counted = _count(self.file, self._counted)
        open_line = self._counted.open_line and not self._follow
        return max(self.position, self._counted.lines + open_line)

    def check_growing(self) -> None:
        """Raise UsageError if the file read from is gone from its path, or shorter than what was read."""
        try:
            now = self.file.path.stat()
        except OSError as err:
            raise UsageError(f"{self.file.path} went away while it was followed: {err}") from err
        if now.st_ino != self._inode or now.st_size < self._bytes_read:
            raise UsageError(f"{self.file.path} was truncated or replaced while it was followed")

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _reset(self) -> None:
        self.close()
        self._stream = self.file.open()
        self._inode = self.file.path.stat().st_ino
        self._bytes_read = 0
        self._lines, self._used = [], 0
        self._tail.clear()
        self._tail_is_taken = self._ended = False

    def _read(self) -> bytes:
        assert self._stream is not None
        block = self.file.read(self._stream, self._block_bytes)
        self._bytes_read += len(block)
        return block

    def _fill(self) -> bool:
        """Have at least one line split that isn't taken; False if there is none now."""
        while self._used == len(self._lines):
            if self._ended:
                return False
            block = self._read()
            if block:
                self._split(block)
            elif self._follow:
                return False
            else:
                self._end()
        return True

    def _split(self, block: bytes) -> None:
        lines = block.split(b"\n")
        last = lines.pop()
        if lines:
            returns = b"\r" in block or self._tail.endswith(b"\r")
            longest = max(len(block), len(self._tail) + len(lines[0]))
            if self._tail:
                self._keep(lines[0])
                lines[0] = bytes(self._tail)
                self._tail.clear()
            if self._tail_is_taken:
                del lines[0]
                self._tail_is_taken = False
            if returns:
                lines = [line.removesuffix(b"\r") for line in lines]
            if longest > self._max_line_bytes:
                lines = [line[: self._max_line_bytes + 1] for line in lines]
            self._lines, self._used = lines, 0
        self._keep(last)

    def _keep(self, part: bytes) -> None:
        # two bytes over the limit tell a line that is too long from one that a carriage return makes look so
        room = self._max_line_bytes + 2 - len(self._tail)
        self._tail += part[:room]

    def _end(self) -> None:
        self._ended = True
        if self._tail and not self._tail_is_taken:
            self._lines = [bytes(self._tail).removesuffix(b"\r")[: self._max_line_bytes + 1]]
            self._used = 0
        self._tail.clear()


@dataclass(frozen=True, slots=True)
class _Counted:
    """What :func:`_count` found: of which state of the file, and where it stopped."""

    inode: int = 0
    size: int = -1
    read: int = 0
    lines: int = 0
    open_line: bool = False


def _count(file: LogFile, before: _Counted) -> _Counted:
    try:
        now = file.path.stat()
    except OSError as err:
        raise UsageError(f"cannot count the lines of {file.path}: {err}") from err
    if (now.st_ino, now.st_size) == (before.inode, before.size):
        return before
    stream = file.open()
    try:
        if isinstance(stream, FileIO) and now.st_ino == before.inode and now.st_size >= before.read:
            stream.seek(before.read)
        else:
            before = _Counted()
        read, lines, open_line = before.read, before.lines, before.open_line
        while block := file.read(stream, BLOCK_BYTES):
            read += len(block)
            lines += int(np.count_nonzero(np.frombuffer(block, np.uint8) == _NEWLINE))
            open_line = not block.endswith(b"\n")
        return _Counted(now.st_ino, now.st_size, read, lines, open_line)
    finally:
        stream.close()
