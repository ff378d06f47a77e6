"""Compiled steps of :mod:`indexer.loading`; one thread, without the GIL."""

from __future__ import annotations

from typing import Any

from indexer.compiling import njit

A = Any


@njit(cache=True, nogil=True)
def part(records: A, lengths: A, fixed: A, rest: A) -> None:
    """Split n records that stand one after the other into their first bytes, (n, width), and all that follows those."""
    width = fixed.shape[1]
    begin = to = 0
    for i in range(lengths.shape[0]):
        for j in range(width):
            fixed[i, j] = records[begin + j]
        for j in range(begin + width, begin + lengths[i]):
            rest[to] = records[j]
            to += 1
        begin += lengths[i]
