"""Many arrays handed to a kernel as one: where each lies in memory, and its shape.

Each array that Python hands to compiled code costs a fifth of a microsecond. Those of an index stay where they are for
thousands of requests, so that they are looked at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import carray, types
from numba.extending import intrinsic

from indexer.compiling import njit

A = Any
_WORDS: Final = 3
"""Of an array: its address, and how long its first two axes are."""


class Packed:
    """C-ordered arrays of one or two axes, and what a kernel takes in place of them.

    Attributes:
        words: (3 n,) int64, see :func:`flat` and :func:`square`; good as long as this object lives.
    """

    def __init__(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        self._arrays = tuple(arrays)
        self.words = np.zeros(_WORDS * len(arrays), np.int64)
        for at, array in enumerate(arrays):
            if not array.flags.c_contiguous:
                raise ValueError(
                    f"array {at} of {len(arrays)} is not contiguous: it can't be handed over by its address"
                )
            self.words[_WORDS * at] = array.ctypes.data
            self.words[_WORDS * at + 1 : _WORDS * at + 1 + array.ndim] = array.shape


@intrinsic
def _pointer(_context: Any, _address: Any, dtype: Any) -> Any:
    """What is at an address, as numbers of a type."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

    return types.CPointer(dtype.dtype)(types.int64, dtype), generate


@njit(cache=True, nogil=True)
def flat(words: A, at: int, dtype: A) -> A:
    """Array number ``at``, of one axis and of this type."""
    return carray(_pointer(words[_WORDS * at], dtype), (words[_WORDS * at + 1],))


@njit(cache=True, nogil=True)
def square(words: A, at: int, dtype: A) -> A:
    """Array number ``at``, of two axes and of this type."""
    return carray(_pointer(words[_WORDS * at], dtype), (words[_WORDS * at + 1], words[_WORDS * at + 2]))
