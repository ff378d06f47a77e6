"""Large arrays in small pages."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.pages import zeros


@pytest.mark.parametrize("shape", [0, 7, (0, 3), (5, 3), 1 << 20, (1 << 18, 4, 2)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_they_are_as_those_of_numpy(shape: int | tuple[int, ...], dtype: type) -> None:
    found, wanted = zeros(shape, dtype), np.zeros(shape, dtype)
    assert (found.shape, found.dtype, found.strides) == (wanted.shape, wanted.dtype, wanted.strides)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert not found.any()


def test_a_large_one_lives_as_long_as_what_shows_it() -> None:
    part = zeros((1 << 20, 4), np.uint16)[::2]
    part[:] = 3
    assert part.sum() == 3 * part.size
