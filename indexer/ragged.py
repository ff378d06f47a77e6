"""Many short growable lists of integers in one array: posting lists and routes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

_SLACK = 1 << 12


def spans(starts: I64, lengths: I64) -> I64:
    """Positions of several spans, one after the other: ``[s0, s0+1, ..., s1, s1+1, ...]``."""
    total = int(lengths.sum())
    if not total:
        return np.empty(0, np.int64)
    ends = np.cumsum(lengths)
    return np.asarray(np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths), np.int64)


class RaggedPool:
    """Rows 0..R-1, each a list of uint32; appending to many rows is one vectorised step.

    A row that outgrows its place moves to the end with doubled room; the pool is rewritten when more than half of it
    is such abandoned room.
    """

    def __init__(self, rows: int = 0) -> None:
        self._start = np.zeros(rows, np.int64)
        self._length = np.zeros(rows, np.int64)
        self._room = np.zeros(rows, np.int64)
        self._data = np.zeros(_SLACK, np.uint32)
        self._used = 0

    @classmethod
    def from_sorted(cls, rows: int, row_of: I64, values: U32) -> RaggedPool:
        """Build at once from values grouped by ascending row. ``row_of`` and ``values`` are (n,)."""
        pool = cls(rows)
        pool._length = np.bincount(row_of, minlength=rows).astype(np.int64)
        pool._room = pool._length.copy()
        pool._start = np.cumsum(pool._length) - pool._length
        pool._data = np.concatenate([values.astype(np.uint32, copy=False), np.zeros(_SLACK, np.uint32)])
        pool._used = len(values)
        return pool

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._data.nbytes + self._start.nbytes + self._length.nbytes + self._room.nbytes

    @property
    def lengths(self) -> I64:
        """(R,) length of each row; a live view, do not write."""
        return self._length

    def ensure_rows(self, rows: int) -> None:
        """Make rows up to ``rows - 1`` exist, empty."""
        have = len(self._start)
        if rows > have:
            grow = max(rows, have + have // 2) - have
            self._start = np.concatenate([self._start, np.zeros(grow, np.int64)])
            self._length = np.concatenate([self._length, np.zeros(grow, np.int64)])
            self._room = np.concatenate([self._room, np.zeros(grow, np.int64)])

    def row(self, index: int) -> U32:
        """A copy of one row."""
        start = self._start[index]
        return self._data[start : start + self._length[index]].copy()

    def gather(self, rows: I64) -> tuple[U32, I64]:
        """The rows' values one after the other, and (len(rows),) how many each gave."""
        lengths = self._length[rows]
        return self._data[spans(self._start[rows], lengths)], lengths

    def first(self, rows: I64) -> U32:
        """(n,) the first value of each row; rows must not be empty."""
        return self._data[self._start[rows]]

    def append(self, rows: I64, values: U32) -> None:
        """Append ``values[i]`` to row ``rows[i]``; both (n,), rows in any order and repeated at will."""
        if not len(rows):
            return
        order = np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        touched, first, count = np.unique(sorted_rows, return_index=True, return_counts=True)
        before = self._length[touched]
        need = before + count
        self._make_room(touched, need)
        rank = np.arange(len(rows)) - np.repeat(first, count)
        self._data[self._start[sorted_rows] + np.repeat(before, count) + rank] = values[order]
        self._length[touched] = need

    def replace(self, row: int, values: U32) -> None:
        """Set one row."""
        rows = np.array([row], np.int64)
        self._length[row] = 0
        self._make_room(rows, np.array([len(values)], np.int64))
        start = self._start[row]
        self._data[start : start + len(values)] = values
        self._length[row] = len(values)

    def set_first(self, rows: I64, value: int) -> None:
        """Replace the first value of each row, (n,); rows must not be empty."""
        self._data[self._start[rows]] = value

    def clear(self, rows: I64) -> None:
        """Empty rows."""
        self._length[rows] = 0

    def remove(self, rows: I64, values: U32) -> None:
        """Take ``values[i]`` out of row ``rows[i]``, keeping the others' order."""
        if not len(rows):
            return
        order = np.argsort(rows, kind="stable")
        touched, first = np.unique(rows[order], return_index=True)
        for row, gone in zip(touched, np.split(values[order], first[1:]), strict=True):
            members = self.row(int(row))
            kept = members[~np.isin(members, gone)]
            start = self._start[row]
            self._data[start : start + len(kept)] = kept
            self._length[row] = len(kept)

    def _make_room(self, rows: I64, need: I64) -> None:
        """Have room for ``need`` values in each of the rows, (n,) distinct; their values stay."""
        short = need > self._room[rows]
        if not short.any():
            return
        room = np.maximum(4, 1 << np.ceil(np.log2(np.maximum(need, 1))).astype(np.int64))
        if self._used + int(room[short].sum()) > len(self._data):
            self._rebuild(int(room.sum()))
            short = need > self._room[rows]  # rewriting takes the room of empty rows, also of those to be filled now
        rows, room = rows[short], room[short]
        starts = self._used + np.cumsum(room) - room
        lengths = self._length[rows]
        self._data[spans(starts, lengths)] = self._data[spans(self._start[rows], lengths)]
        self._start[rows], self._room[rows] = starts, room
        self._used += int(room.sum())

    def _rebuild(self, extra: int) -> None:
        """Squeeze out abandoned room when it pays, else grow."""
        alive = int(self._room[self._length > 0].sum())
        if self._used > 2 * alive + _SLACK:
            self._room = np.where(self._length > 0, self._room, 0)
            starts = np.cumsum(self._room) - self._room
            data = np.zeros(2 * (alive + extra) + _SLACK, np.uint32)
            data[spans(starts, self._length)] = self._data[spans(self._start, self._length)]
            self._data, self._start, self._used = data, starts, alive
        else:
            data = np.zeros(2 * (self._used + extra) + _SLACK, np.uint32)
            data[: self._used] = self._data[: self._used]
            self._data = data
