"""Keys and values cut into pieces and read as arrays."""

from __future__ import annotations

import numpy as np
import pytest

from indexer import keys
from schemas.errors import StoreCorruptError


def test_pieces_keep_every_byte() -> None:
    joined = bytes(range(6)) + bytes(6)
    assert keys.split(joined, 3) == [b"\0\1\2", b"\3\4\5", b"\0\0\0", b"\0\0\0"]
    assert keys.split(b"", 3) == []


def test_numbered_keys_are_read_as_arrays() -> None:
    many = [keys.FACET_U32.pack(facet, number) for facet, number in ((0, 7), (2, 1 << 31))]
    facets, numbers = keys.numbered_arrays(many, "routes")
    assert facets.tolist() == [0, 2]
    assert numbers.tolist() == [7, 1 << 31]
    assert [keys.numbered(key, "routes") for key in many] == numbers.tolist()
    with pytest.raises(StoreCorruptError, match="in routes"):
        keys.numbered_arrays([*many, b"\0\0"], "routes")


def test_ordinals_come_back() -> None:
    ordinals = np.array([0, 1, 1 << 40])
    assert keys.ordinals(keys.ordinal_keys(ordinals), "items").tolist() == ordinals.tolist()
