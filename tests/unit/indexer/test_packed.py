"""Arrays handed over by their addresses."""

from __future__ import annotations

import weakref

import numba
import numpy as np
import pytest

from indexer.packed import Packed, flat, square


@numba.njit
def _read(words):
    names, table = flat(words, 0, np.uint32), square(words, 1, np.float64)
    return names.sum() + table[-1, -1], names.shape, table.shape


def test_a_kernel_sees_the_numbers_and_shapes_of_each() -> None:
    packed = Packed([np.arange(5, dtype=np.uint32), np.arange(12.0).reshape(3, 4)])
    assert _read(packed.words) == (21.0, (5,), (3, 4))


def test_what_changes_in_an_array_is_seen() -> None:
    names = np.zeros(2, np.uint32)
    packed = Packed([names, np.zeros((1, 1))])
    names[:] = 7
    assert _read(packed.words)[0] == 14.0


def test_no_array_goes_before_its_address() -> None:
    names = np.arange(5, dtype=np.uint32)
    seen = weakref.ref(names)
    packed = Packed([names, np.ones((1, 1))])
    del names
    assert seen() is not None
    assert _read(packed.words)[0] == 11.0
    del packed
    assert seen() is None


def test_an_array_with_gaps_is_refused() -> None:
    with pytest.raises(ValueError, match="array 1 of 2 is not contiguous"):
        Packed([np.zeros(1), np.zeros((4, 4))[:, :2]])
