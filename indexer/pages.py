"""Large arrays in pages of the ordinary size.

For arrays of 4 MiB and more numpy asks for huge pages. Where the machine is a guest whose page tables are kept by
software, such a page takes several times as long to be had as the small ones in its place: 7 ms for 2 MiB, measured,
against 1.1. Opening an index and growing its arrays wait for that; requests gain a few hundredths by them at most.
"""

from __future__ import annotations

import math
import mmap
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_LARGE: Final = 4 << 20


def zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """As :func:`numpy.zeros`: memory is taken where it is written to, in pages of the ordinary size."""
    count = shape if isinstance(shape, int) else math.prod(shape)
    size = count * np.dtype(dtype).itemsize
    if size < _LARGE:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype, count).reshape(shape)
