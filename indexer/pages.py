"""Large arrays without asking for huge pages.

For arrays of 4 MiB and more numpy asks the kernel for huge pages. On a virtual machine that gives free memory back to
its host, one of 2 MiB takes 7 ms to be had again, 512 small ones 1.1 ms. Opening an index and growing its arrays wait
for that; requests gain a few hundredths by huge pages at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy._core import multiarray

# numpy knows an environment variable besides, which holds for a whole process and has to be set before it is imported.
_ask = getattr(multiarray, "_set_madvise_hugepage", lambda _: False)
_asks = getattr(multiarray, "_get_madvise_hugepage", lambda: False)()


def zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """As :func:`numpy.zeros`, in pages of the ordinary size unless the system gives huge ones to everybody."""
    _ask(False)
    try:
        return np.zeros(shape, dtype)
    finally:
        _ask(_asks)  # another thread's array in between has small pages, too: no harm
