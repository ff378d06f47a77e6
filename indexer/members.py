"""Posting lists with their embeddings, contiguous in leaf order: what a request reads is one run of memory a leaf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer import member_kernels as kernels
from indexer import order_kernels
from indexer.pages import zeros
from indexer.ragged import spans

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]

_SLACK: Final = 1 << 10
_LADDER: Final = np.unique(np.ceil(1.15 ** np.arange(10, 160) / 4).astype(np.int64) * 4)
"""Rooms are of these sizes, so that a room left by one row fits another."""
_WASTE: Final = 0.2
"""The pool is rewritten when more of it than this is abandoned room."""


_Arrays = tuple[U32, F32, npt.NDArray[np.uint16]]


class MemberPool:
    """Members of all leaves of all facets: ordinals, heats and float16 embeddings in three arrays, row by row.

    Row ``leaf * facets + facet`` is a leaf's posting list. A row that outgrows its room moves to a room that another
    one left, else to the end; the pool is rewritten when too much of it is abandoned.

    Attributes:
        start, length, room: (R,) of each row, in members.
        ordered: (R,) how many members from the first on are in order; those behind came since, newest last.
        touched: (R,) how many members came or were engaged since the row was sorted.
        ordinal: (C,) uint32; heat: (C,) float32, see :mod:`indexer.order`; bits: (C, d) uint16, embeddings as bits of
            float16.
        place: (items, facets) uint32: where in its leaf each live item stands.
    """

    def __init__(self, facets: int, dim: int) -> None:
        self.facets = facets
        self.start, self.length, self.room = (np.zeros(0, np.int64) for _ in range(3))
        self.ordered, self.touched = (np.zeros(0, np.int64) for _ in range(2))
        self.ordinal = np.zeros(_SLACK, np.uint32)
        self.heat = np.zeros(_SLACK, np.float32)
        self.bits = np.zeros((_SLACK, dim), np.uint16)
        self.place = np.zeros((0, facets), np.uint32)
        self._used = 0
        self._free = np.full(len(_LADDER), -1, np.int64)
        self._abandoned = 0

    def adopt(
        self,
        start: I64,
        length: I64,
        room: I64,
        ordinal: U32,
        heat: F32,
        bits: npt.NDArray[np.uint16],
        place: U32,
    ) -> None:
        """Use the arrays of another pool, all rows of it in order; see the attributes."""
        self.start, self.length, self.room = start, length, room
        self.ordered, self.touched = length.copy(), np.zeros_like(length)
        self.ordinal, self.heat, self.bits, self.place = ordinal, heat, bits, place
        self._used = int((start + room).max(initial=0))

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        arrays = (self.start, self.length, self.room, self.ordered, self.touched, self.ordinal, self.heat, self.bits)
        return sum(array.nbytes for array in arrays) + self.place.nbytes

    def ensure_rows(self, rows: int) -> None:
        """Make rows up to ``rows - 1`` exist, empty."""
        have = len(self.start)
        if rows > have:
            grow = np.zeros(max(rows, have + have // 2) - have, np.int64)
            self.start, self.length, self.room, self.ordered, self.touched = (
                np.concatenate([array, grow])
                for array in (self.start, self.length, self.room, self.ordered, self.touched)
            )

    def ensure_items(self, count: int) -> None:
        """Make room for the places of ``count`` items."""
        have = len(self.place)
        if count > have:
            place = zeros((max(count, have + have // 4, 1_024), self.facets), np.uint32)
            place[:have] = self.place
            self.place = place

    def row(self, row: int) -> U32:
        """Ordinals of one row, copied."""
        start = self.start[row]
        return self.ordinal[start : start + self.length[row]].copy()

    def gather(self, rows: I64) -> tuple[U32, I64]:
        """The rows' ordinals one after the other, and (len(rows),) how many each gave."""
        lengths = self.length[rows]
        return self.ordinal[spans(self.start[rows], lengths)], lengths

    def vectors(self, rows: I64, ordinals: npt.NDArray[np.integer]) -> F16:
        """(n, d) float16 embeddings of members, each in the row it is in; both arguments (n,)."""
        return np.asarray(self.bits[self.start[rows] + self.place[ordinals, rows % self.facets]].view(np.float16))

    def embeddings(self, leaf: U32, live: npt.NDArray[np.bool_], ordinals: I64) -> F16:
        """(n, F, d) float16 of items, zeros of those that are not ``live`` (n,). ``leaf`` is (items, facets)."""
        out = np.zeros((len(ordinals), self.facets, self.bits.shape[1]), np.uint16)
        kernels.embeddings(self.start, self.place, self.bits, leaf, live, ordinals, out)
        return out.view(np.float16)

    def holds(self, rows: I64, ordinals: I64) -> npt.NDArray[np.bool_]:
        """(n,) whether each item stands in the row given."""
        there = rows < len(self.start)
        rows = np.where(there, rows, 0)
        place = self.place[ordinals, rows % self.facets]
        there &= place < self.length[rows] if len(self.length) else False
        return np.asarray(there & (self.ordinal[np.where(there, self.start[rows] + place, 0)] == ordinals))

    def append(self, rows: I64, ordinals: npt.NDArray[np.integer], vectors: F16, heats: F32) -> None:
        """Put members at the end of their rows; all (n,), vectors (n, d), rows in any order and repeated at will."""
        if not len(rows):
            return
        touched, count = np.unique(rows, return_counts=True)
        self._make_room(touched, self.length[touched] + count)
        kernels.append(
            self.start,
            self.length,
            self.touched,
            self.ordinal,
            self.heat,
            self.bits,
            self.place,
            rows,
            ordinals.astype(np.uint32),
            np.ascontiguousarray(vectors).view(np.uint16),
            heats,
        )

    def remove(self, rows: I64, ordinals: npt.NDArray[np.integer]) -> None:
        """Take members out of the rows they are in; both (n,), distinct."""
        if len(rows):
            kernels.remove(
                self.start,
                self.length,
                self.ordered,
                self.ordinal,
                self.heat,
                self.bits,
                self.place,
                rows,
                ordinals.astype(np.uint32),
            )

    def take(self, row: int) -> tuple[U32, F16, F32]:
        """Empty a row and return what it held: ordinals, vectors, heats."""
        at = slice(self.start[row], self.start[row] + self.length[row])
        out = self.ordinal[at].copy(), self.bits[at].copy().view(np.float16), self.heat[at].copy()
        self._release(row)
        return out

    def sort(
        self, rows: I64, created_at: I64, creation: float, half_life_s: int, landmark: int, *, bare: bool = False
    ) -> None:
        """Put rows (n,) in order, see :mod:`indexer.order`.

        ``created_at`` is (items,) epoch milliseconds. If ``bare``, there are no embeddings yet that have to move along.
        """
        order_kernels.sort(
            self.start,
            self.length,
            self.ordered,
            self.touched,
            self.ordinal,
            self.heat,
            self.bits[:, :0] if bare else self.bits,
            self.place,
            created_at,
            rows,
            creation,
            half_life_s * 1_000.0,
            float(landmark),
        )

    def engage(self, leaf: U32, ordinals: I64, heats: F32) -> None:
        """New heats of live items, (n,) distinct. ``leaf`` is (items, facets)."""
        kernels.engage(self.start, self.touched, self.heat, self.place, leaf, ordinals, heats)

    def reheat(self, heats: F32) -> None:
        """All heats anew, (items,)."""
        kernels.reheat(self.start, self.length, self.ordinal, self.heat, heats)

    def renew(self, rows: I64, ordinals: npt.NDArray[np.integer], vectors: F16, heats: F32) -> None:
        """New embeddings and heats of members that stay in their rows; all (n,), distinct, vectors (n, d)."""
        at = self.start[rows] + self.place[ordinals, rows % self.facets]
        if len(at) and (self.ordinal[at] != ordinals).any():
            raise ValueError("an item is not in the leaf that it is said to be in")
        self.bits[at], self.heat[at] = np.ascontiguousarray(vectors).view(np.uint16), heats
        self.touched[rows] += 1

    def load_vectors(self, leaf: U32, ordinals: I64, vectors: F16) -> None:
        """Embeddings (n, F, d) of items (n,) wherever they stand; those of items that stand nowhere are passed over.

        ``leaf`` is (items, F).
        """
        bits = vectors.view(np.uint16)
        kernels.set_vectors(self.start, self.length, self.ordinal, self.bits, self.place, leaf, ordinals, bits)

    def build(self, live: npt.NDArray[np.bool_], leaf: U32, heats: F32) -> None:
        """Build at once, embeddings zero: every live item into its leaf's row in each facet, the last one first.

        ``live`` and ``heats`` are (items,), ``leaf`` is (items, facets), of rows that exist.
        """
        lengths = np.zeros_like(self.length)
        kernels.count(live, leaf, lengths)
        self.room[:] = np.where(lengths > 0, _rooms(lengths), 0)
        self.start[:] = np.cumsum(self.room) - self.room
        self._used = int(self.room.sum())
        self._resize(self._used + self._used // 16 + _SLACK)
        kernels.fill(self.start, self.length, self.ordinal, self.heat, self.place, live, leaf, heats)

    def _release(self, row: int) -> None:
        self._abandoned += kernels.release(row, self.start, self.room, self._free, _LADDER, self.ordinal)
        self.start[row] = self.length[row] = self.ordered[row] = self.touched[row] = 0

    def _make_room(self, rows: I64, need: I64) -> None:
        """Have room for ``need`` members in each of the rows, (n,) distinct; their members stay."""
        if not (need > self.room[rows]).any():
            return
        if self._abandoned > _WASTE * self._used + _SLACK:
            self.squeeze()  # takes the room of empty rows, also of those to be filled now
        done = 0
        while True:
            seen, self._used, left = kernels.make_room(
                self.start,
                self.length,
                self.room,
                self._free,
                _LADDER,
                self.ordinal,
                self.heat,
                self.bits,
                rows[done:],
                need[done:],
                self._used,
            )
            self._abandoned += left
            done += seen
            if done == len(rows):
                return
            self._resize(2 * (self._used + int(_rooms(need[done:]).sum())))  # what is not used yet takes no memory

    def readied(self, rows: I64) -> Callable[[], None]:
        """Copy the pool aside, if appending members to ``rows`` (n,), repeated at will, would take a larger one.

        Only the thread that changes the pool may call it. Others may read meanwhile, but not while the function that it
        returns, which takes an instant, puts the copy in place.
        """
        most = _WASTE * self._used + _SLACK
        if 2 * self._abandoned < most and len(self.ordinal) - self._used > self._used // 8 + 64 * len(rows):
            return lambda: None  # ample
        touched, need = np.unique(rows, return_counts=True)
        room = np.zeros(len(touched), np.int64)
        known = touched < len(self.length)
        need[known] += self.length[touched[known]]
        room[known] = self.room[touched[known]]
        short = need > room
        extra = int(_rooms(need[short]).sum())
        if self._abandoned > most or self._used + extra <= len(self.ordinal):
            return lambda: None  # squeezed in place, which is quick, or there is room
        laid = self._enlarged(2 * (self._used + extra))
        return lambda: self._use(laid)

    def _resize(self, size: int) -> None:
        """Arrays of ``size`` members; what is in use stays."""
        self._use(self._enlarged(size))

    def squeeze(self) -> None:
        """Close the gaps that abandoned room left, in place."""
        filled = np.flatnonzero(self.length)
        order = filled[np.argsort(self.start[filled])]
        empty = self.length == 0
        self.start[empty] = self.room[empty] = 0
        arrays = (self.start, self.length, self.room, self.ordinal, self.heat, self.bits)
        self._used = kernels.squeeze(order, *arrays)
        self._free[:], self._abandoned = -1, 0

    def _enlarged(self, size: int) -> _Arrays:
        """Arrays of ``size`` members, made aside, that hold what is in use."""
        keep, dim = min(self._used, len(self.ordinal)), self.bits.shape[1]
        ordinal, heat, bits = zeros(size, np.uint32), zeros(size, np.float32), zeros((size, dim), np.uint16)
        ordinal[:keep], heat[:keep], bits[:keep] = self.ordinal[:keep], self.heat[:keep], self.bits[:keep]
        return ordinal, heat, bits

    def _use(self, larger: _Arrays) -> None:
        self.ordinal, self.heat, self.bits = larger


def _rooms(need: I64) -> I64:
    """The least room on the ladder for each of (n,) lengths."""
    return _LADDER[np.searchsorted(_LADDER, need)]


class FacetMembers:
    """The posting lists of one facet: the pool's rows by leaf id."""

    def __init__(self, pool: MemberPool, facet: int) -> None:
        self.pool = pool
        self.facet = facet

    @property
    def lengths(self) -> I64:
        """(leaves,) length of each posting list; a live view, do not write."""
        return self.pool.length[self.facet :: self.pool.facets]

    def rows(self, leaves: npt.NDArray[np.integer]) -> I64:
        """Rows of the pool."""
        return leaves.astype(np.int64) * self.pool.facets + self.facet

    def row(self, leaf: int) -> U32:
        """Ordinals of one leaf, copied, in the order they are kept in."""
        return self.pool.row(leaf * self.pool.facets + self.facet)

    def gather(self, leaves: npt.NDArray[np.integer]) -> tuple[U32, I64]:
        """Ordinals of the leaves one after the other, and (len(leaves),) how many each gave."""
        return self.pool.gather(self.rows(leaves))
