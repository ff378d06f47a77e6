"""Scratch of the kernels: a thread keeps it from call to call, as fresh memory costs more than most answers."""

from __future__ import annotations

import threading
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from indexer.compiling import njit
from indexer.packed import Packed

A = Any
BLOOM: Final = 1 << 15
"""Bits of the filter that tells most members which are not results yet from those that are."""
_PIECE: Final = 4
"""Words for a piece: where it is, and a limit."""
_LEAST: Final = 4_096
"""Entries that there is room for at first."""


class Room(NamedTuple):
    """What :func:`parted` makes of scratch.

    Attributes:
        pieces: (p, 3) begin, end and slot of each; limits: by slot, the least key within its share.
        bloom: bits.
        keys, rest: (e,) of candidates; who, slot, picked: likewise.
        at, scores: (e,) position and score of each entry; read, prior: of the members of a leaf.
        table: (a power of two, over twice the candidates; 3) generation, ordinal, state; generation: (1,), the last.
    """

    pieces: npt.NDArray[np.int64]
    limits: npt.NDArray[np.uint64]
    bloom: npt.NDArray[np.uint64]
    keys: npt.NDArray[np.uint64]
    rest: npt.NDArray[np.uint64]
    who: npt.NDArray[np.uint32]
    slot: npt.NDArray[np.int32]
    picked: npt.NDArray[np.int32]
    at: npt.NDArray[np.uint32]
    scores: npt.NDArray[np.float32]
    read: npt.NDArray[np.uint32]
    prior: npt.NDArray[np.float32]
    table: npt.NDArray[np.uint32]
    generation: npt.NDArray[np.int64]


class Scratch(NamedTuple):
    """A thread's.

    Attributes:
        words: uint64; table, generation: of :class:`Room`.
        pieces, entries: what there is room for.
    """

    words: npt.NDArray[np.uint64]
    table: npt.NDArray[np.uint32]
    generation: npt.NDArray[np.int64]
    pieces: int
    entries: int


@njit(cache=True, nogil=True)
def parted(words: A, table: A, generation: A, p: int, e: int) -> A:
    """The :class:`Room` for p pieces and e entries that lies in scratch; made here, as each array handed in costs."""
    long, bloom = words[: _PIECE * p], words[_PIECE * p : _PIECE * p + BLOOM // 64]
    keys = words[_PIECE * p + BLOOM // 64 :]
    short = keys[2 * e :]
    half = e // 2
    return Room(
        long[: 3 * p].view(np.int64).reshape((p, 3)),
        long[3 * p :],
        bloom,
        keys[:e],
        keys[e : 2 * e],
        short[:half].view(np.uint32),
        short[half : 2 * half].view(np.int32),
        short[2 * half : 3 * half].view(np.int32),
        short[3 * half : 4 * half].view(np.uint32),
        short[4 * half : 5 * half].view(np.float32),
        short[5 * half : 6 * half].view(np.uint32),
        short[6 * half : 7 * half].view(np.float32),
        table,
        generation,
    )


class Rooms(threading.local):
    """A thread's scratch, as large as its largest call wanted."""

    def __init__(self) -> None:
        self._scratch = Scratch(np.empty(0, np.uint64), np.empty((0, 3), np.uint32), np.zeros(1, np.int64), 0, 0)
        self._packed: Packed | None = None

    def of(self, pieces: int, entries: int = _LEAST) -> Scratch:
        """Scratch for at least so much."""
        have = self._scratch
        if pieces > have.pieces or entries > have.entries:
            pieces, entries = max(pieces, have.pieces), (max(entries, have.entries) + 15) // 16 * 16
            words = np.empty(_PIECE * pieces + BLOOM // 64 + 2 * entries + 7 * entries // 2, np.uint64)
            table = np.zeros((2 << (2 * entries).bit_length(), 3), np.uint32)
            self._scratch = have = Scratch(words, table, np.zeros(1, np.int64), pieces, entries)
            self._packed = None
        return have

    def packed(self, pieces: int, entries: int = _LEAST) -> tuple[npt.NDArray[np.int64], int, int]:
        """As :meth:`of`, the three arrays as one."""
        have = self.of(pieces, entries)
        if self._packed is None:
            self._packed = Packed(have[:3])
        return self._packed.words, have.pieces, have.entries
