"""Compiled union of several neighbour lists."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from indexer.compiling import njit

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@njit(cache=True)
def union(rows: I64, similarities: F32, extra: F32, passed: I64, seen_at: I64, best: F32) -> tuple[I64, F32]:
    """Distinct rows of a union with the greatest similarity of each, plus what it is worth.

    Args:
        rows: (n,) item rows, -1 is none.
        similarities: (n,).
        extra: (N,) added once to each; -inf leaves an item out.
        passed: rows left out.
        seen_at: (N,) scratch, all -1 at entry and at return.
        best: (n,) scratch.

    Returns:
        (u,) rows in order of first appearance and their (u,) scores.
    """
    found = np.empty(len(rows), np.int64)
    count = 0
    for row in passed:
        seen_at[row] = -2
    for at in range(len(rows)):
        row = rows[at]
        if row < 0 or seen_at[row] == -2 or extra[row] == -np.inf:
            continue
        place = seen_at[row]
        if place < 0:
            seen_at[row] = count
            found[count] = row
            best[count] = similarities[at]
            count += 1
        elif similarities[at] > best[place]:
            best[place] = similarities[at]
    scores = np.empty(count, np.float32)
    for at in range(count):
        scores[at] = best[at] + extra[found[at]]
        seen_at[found[at]] = -1
    for row in passed:
        seen_at[row] = -1
    return found[:count], scores
