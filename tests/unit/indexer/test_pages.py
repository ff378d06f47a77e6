"""Large arrays without huge pages."""

from __future__ import annotations

import numpy as np
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


def test_numpy_asks_for_huge_pages_as_before_afterwards() -> None:
    asks = multiarray._get_madvise_hugepage()
    zeros(1 << 22, np.float32)
    assert multiarray._get_madvise_hugepage() == asks
