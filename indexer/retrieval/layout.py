"""How answers lie in one array of int64, as each array costs: first a :class:`Found`, then a :class:`Chosen`.

The functions are called compiled, and from Python as ``function.py_func``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.compiling import njit
from indexer.retrieval.request import Chosen, Found

A = Any


@njit(cache=True, nogil=True)
def found_size(requests: int, k: int) -> int:
    """Numbers that the results of so many requests take."""
    return requests * (2 + 4 * k)


@njit(cache=True, nogil=True)
def chosen_size(requests: int, votes: int) -> int:
    """Numbers that the leaves of so many requests take, which have so many votes together."""
    return requests + 1 + 5 * (votes + 1)


@njit(cache=True, nogil=True)
def found_in(out: A, requests: int, k: int) -> A:
    """The :class:`Found` at the beginning."""
    head, n = 2 * requests, requests * k
    return Found(
        out[:head].reshape((2, requests)),
        out[head : head + n].view(np.float64).reshape((requests, k)),
        out[head + n : head + 4 * n].reshape((3, requests, k)),
    )


@njit(cache=True, nogil=True)
def chosen_in(out: A, requests: int, votes: int) -> A:
    """The :class:`Chosen` at the beginning."""
    n, head = votes + 1, requests + 1
    return Chosen(
        out[:head],
        out[head : head + n],
        out[head + n : head + 2 * n],
        out[head + 2 * n : head + 3 * n].view(np.float64),
        out[head + 3 * n : head + 4 * n],
        out[head + 4 * n : head + 5 * n],
    )
