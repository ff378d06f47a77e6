"""Compiled: from the ids that requests name to their results in one call, as calls cost more than most of the steps.

One thread, no GIL. Only for arrays that lie in memory as a whole, and for requests without filters and without triggers
that are not indexed; the steps are those of all other requests.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from indexer.compiling import njit
from indexer.id_kernels import find
from indexer.keys import ItemState
from indexer.packed import flat, square
from indexer.retrieval.kernels import score_each
from indexer.retrieval.layout import chosen_in, found_in, found_size
from indexer.retrieval.request import Centroids, Filters, How, Pool, Triggers
from indexer.retrieval.room import parted
from indexer.retrieval.vote_kernels import choose_each, locate
from schemas.config import RetrievalConfig

A = Any
LIVE: Final = int(ItemState.LIVE)
OTHERWISE: Final = -1
"""Some trigger is not live: which ones, the other way tells."""


@njit(cache=True, nogil=True)
def _pool(index: A) -> A:
    """The pool among the arrays of :class:`indexer.retrieval.request.Straight`."""
    return Pool(
        flat(index, 0, np.int64),
        flat(index, 1, np.int64),
        flat(index, 2, np.int64),
        flat(index, 3, np.uint32),
        flat(index, 4, np.float32),
        square(index, 5, np.uint16),
        square(index, 6, np.uint32),
        square(index, 7, np.uint32),
        flat(index, 8, np.int64),
        flat(index, 9, np.uint32),
        flat(index, 10, np.int64),
        square(index, 11, np.int32),
        square(index, 12, np.float64),
    )


def fixed_of(config: RetrievalConfig, half_lives_s: tuple[int, ...], *, learned: bool) -> npt.NDArray[np.float64]:
    """What does not change between requests: leaves of a request, then fields of :class:`How`."""
    how = How.of(config, half_lives_s, 0, 0, learned=learned, exact=False)
    changing = {"now_ms", "landmark", "exact"}
    return np.array([config.indices, *(value for name, value in how._asdict().items() if name not in changing)])


@njit(cache=True, nogil=True)
def answer(
    index: A, table: A, probes: int, scratch: A, p: int, e: int, requests: int, lengths: A, text: A, k: int, fixed: A,
    now_ms: float, landmark: int, exact: bool, out: A,
) -> int:  # fmt: skip
    """Answer requests that name indexed triggers.

    Args:
        index, table: of :class:`indexer.retrieval.request.Straight`; probes: no more than the table has leaves.
        scratch, p, e: of :class:`indexer.retrieval.room.Scratch`.
        requests, lengths, text: how many, of each how many triggers, then bytes of each id, and the ids.
        k: results of a request at most.
        fixed: see :func:`fixed_of`; now_ms, landmark, exact: of :class:`How`.
        out: for a :class:`Found` and a :class:`Chosen`, see :mod:`indexer.retrieval.layout`.

    Returns:
        0; :data:`OTHERWISE`; or for how many entries there must be room in the scratch. Then nothing was done.
    """
    pool, leaf = _pool(index), square(index, 7, np.uint32)
    state, reads = flat(index, 16, np.uint8), flat(index, 17, np.float32)
    facets, total = pool.place.shape[1], lengths.shape[0] - requests
    ordinals = np.empty(total, np.int64)
    offsets, known, slots = flat(index, 13, np.int64), flat(index, 14, np.uint8), flat(index, 15, np.uint64)
    find(slots, offsets, known, lengths[requests:], text, ordinals)
    leaves = np.empty((total, facets), np.int64)
    vectors = np.empty((total, facets, pool.bits.shape[1]), np.float32)
    if locate(ordinals, LIVE, state, leaf, pool.start, pool.place, pool.bits, leaves, vectors) < total:
        return OTHERWISE
    pointer = np.zeros(requests + 1, np.int64)
    for request in range(requests):
        pointer[request + 1] = pointer[request] + lengths[request]
    how = How(
        int(fixed[1]), int(fixed[2]), fixed[3], int(fixed[4]), fixed[5], fixed[6], fixed[7], fixed[8], now_ms,
        int(fixed[9]), landmark, fixed[10], fixed[11], exact,
    )  # fmt: skip
    votes = total * facets * (1 + probes)
    found, chosen = found_in(out, requests, k), chosen_in(out[found_size(requests, k) :], requests, votes)
    centroids = Centroids(
        flat(table, 0, np.int64), flat(table, 1, np.int64), square(table, 2, np.float32), flat(table, 3, np.float32)
    )
    choose_each(
        pointer, leaves, vectors, np.empty((requests, 0)), np.full(requests, probes), int(fixed[0]), centroids, chosen
    )
    asked = Triggers(pointer, leaves, vectors, pointer, ordinals)
    none = np.zeros(0, np.bool_)
    filters = Filters(np.zeros(requests, np.bool_), pointer, np.zeros(requests + 1, np.int64), none)
    room = parted(flat(scratch, 0, np.uint64), square(scratch, 1, np.uint32), flat(scratch, 2, np.int64), p, e)
    needed: int = score_each(room, asked, chosen, pool, filters, how, found)
    if not needed:
        for at in range(chosen.pointer[requests]):
            row = chosen.leaf[at] * facets + chosen.facet[at]
            if row < reads.shape[0]:
                reads[row] += 1
    return needed
