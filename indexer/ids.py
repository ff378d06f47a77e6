"""Item ids by ordinal and ordinals by item id, without a Python object an item: about 40 bytes and the id itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from indexer import id_kernels as kernels

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

ScalarT = TypeVar("ScalarT", bound=np.generic)

_LEAST: Final = 1_024


class Ids:
    """Ids of the ordinals from 0 on; an ordinal keeps its id for ever.

    One thread at a time may add, while nobody looks ordinals up; ids may be read meanwhile.

    Attributes:
        distinct: how many different ids there are, empty ones not counted.
    """

    def __init__(self) -> None:
        self.adopt(np.zeros(_LEAST, np.int64), np.zeros(_LEAST, np.uint8), np.zeros(_LEAST, np.uint64), 0, 0)

    def adopt(self, offsets: I64, text: U8, table: U64, count: int, distinct: int) -> None:
        """Use the arrays that :meth:`arrays` of another gave."""
        self._offsets, self._text, self._table = offsets, text, table
        self._count, self.distinct = count, distinct

    def arrays(self) -> tuple[I64, U8, U64]:
        """(count + 1 or more,) where each id begins, utf-8 of all of them, the hash table; spare room included."""
        return self._offsets, self._text, self._table

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, ordinal: int) -> str:
        return self.of(np.array([ordinal]))[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.of(np.arange(self._count)))

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return self._offsets.nbytes + self._text.nbytes + self._table.nbytes

    def of(self, ordinals: npt.NDArray[np.integer]) -> list[str]:
        """(n,) ids."""
        ends, text = self.texts(ordinals)
        joined, stops = text.tobytes(), ends.tolist()
        return [joined[begin:end].decode() for begin, end in zip([0, *stops], stops, strict=False)]

    def texts(self, ordinals: npt.NDArray[np.integer]) -> tuple[I64, U8]:
        """Ids of n ordinals as utf-8, one after the other, and (n,) where each ends."""
        offsets = self._offsets
        ends = np.cumsum(offsets[ordinals + 1] - offsets[ordinals])
        out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        kernels.gather(offsets, self._text, ordinals.astype(np.int64), ends, out)
        return ends, out

    def ordinals(self, item_ids: Sequence[str]) -> I64:
        """(n,) ordinals, -1 where an id was never seen."""
        encoded = encode(item_ids)
        out = np.empty(len(encoded), np.int64)
        wanted = np.frombuffer(b"".join(encoded), np.uint8)
        kernels.find(self._table, self._offsets, self._text, _lengths(encoded), wanted, out)
        return out

    def ordinal(self, item_id: str) -> int:
        """-1 where it was never seen."""
        return int(self.ordinals([item_id])[0])

    def add(self, encoded: Sequence[bytes]) -> None:
        """Give the next ordinals to n ids, utf-8; an empty one leaves its ordinal without an id."""
        self.add_texts(_lengths(encoded), np.frombuffer(b"".join(encoded), np.uint8))

    def add_texts(self, lengths: I64, text: U8) -> None:
        """As :meth:`add`, of ids that stand one after the other."""
        first, last = self._count, self._count + len(lengths)
        begin = int(self._offsets[first])
        offsets = begin + np.cumsum(lengths)
        end = int(offsets[-1]) if len(lengths) else begin
        self._offsets = _room(self._offsets, last + 1)
        self._text = _room(self._text, end)
        self._text[begin:end] = text
        self._offsets[first + 1 : last + 1] = offsets
        wanted = self.distinct + len(lengths)
        if 3 * wanted > 2 * len(self._table):
            larger = np.zeros(1 << (2 * wanted - 1).bit_length(), np.uint64)
            kernels.enlarge(self._table, larger)
            self._table = larger
        self.distinct += kernels.insert(self._table, self._offsets, self._text, first, last)
        self._count = last


def encode(item_ids: Sequence[str]) -> list[bytes]:
    """As utf-8."""
    try:
        return [item_id.encode() for item_id in item_ids]
    except UnicodeEncodeError:  # half a surrogate pair, which no item has
        return [item_id.encode(errors="surrogatepass") for item_id in item_ids]


def _lengths(encoded: Sequence[bytes]) -> I64:
    return np.fromiter(map(len, encoded), np.int64, len(encoded))


def _room(array: npt.NDArray[ScalarT], size: int) -> npt.NDArray[ScalarT]:
    """With room for ``size`` values."""
    if size <= len(array):
        return array
    out = np.zeros(max(size, len(array) + len(array) // 2), array.dtype)
    out[: len(array)] = array
    return out
