"""Large arrays without huge pages."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from numpy._core import multiarray

from indexer.pages import zeros


@pytest.mark.parametrize("shape", [0, 7, (0, 3), (5, 3), 1 << 20, (1 << 18, 4, 2)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_they_are_as_those_of_numpy(shape: int | tuple[int, ...], dtype: type) -> None:
    found, wanted = zeros(shape, dtype), np.zeros(shape, dtype)
    assert (found.shape, found.dtype, found.strides) == (wanted.shape, wanted.dtype, wanted.strides)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert not found.any()


def asks_for_huge_pages(array: npt.NDArray[np.uint8]) -> bool:
    """Whether the kernel was asked to back an array with huge pages."""
    inside, flags, middle = False, "", array.ctypes.data + array.nbytes // 2
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= middle < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line
    return "hg" in flags.split()


def test_a_large_one_has_no_huge_pages() -> None:
    size = 64 << 20  # never out of memory that was had for something else
    if not asks_for_huge_pages(np.zeros(size, np.uint8)):
        pytest.skip("numpy asks for no huge pages here")
    assert not asks_for_huge_pages(zeros(size, np.uint8))


def test_numpy_asks_for_huge_pages_as_before_afterwards() -> None:
    asks = multiarray._get_madvise_hugepage()
    zeros(1 << 22, np.float32)
    assert multiarray._get_madvise_hugepage() == asks
