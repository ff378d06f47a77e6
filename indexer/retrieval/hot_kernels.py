"""Compiled: places for the hot list among results. One thread, no GIL."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.compiling import njit

A = Any
OF_THE_LIST = -1
"""Facet and leaf of a result that the hot list gave."""


@njit(cache=True, nogil=True)
def _holds(these: A, n: int, ordinal: int) -> A:
    """Whether the first n ordinals, which are ascending, hold one."""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        if these[middle] < ordinal:
            low = middle + 1
        else:
            high = middle
    return low < n and these[low] == ordinal


@njit(cache=True, nogil=True)
def _next(hot: A, labels: A, created_at: A, at: int, skips: A, filters: A, request: int) -> int:
    """Place of the next item of the list that may be a result, from ``at`` on; its end if there is none."""
    active, born_after, pointer, allowed = filters
    first, some = pointer[request], pointer[request + 1] > pointer[request]
    while at < hot.shape[0]:
        passes = not _holds(skips, skips.shape[0], hot[at])
        if passes and active[request]:
            passes = created_at[at] >= born_after[request]
            if passes and some:
                passes = allowed[first + labels[at]]
        if passes:
            return at
        at += 1
    return at


@njit(cache=True, nogil=True)
def share(
    hot: A, impact: A, created_at: A, labels: A, skip_pointer: A, skip: A,
    active: A, born_after: A, pointer: A, allowed: A,
    head: int, k: int, counts: A, score: A, where: A, out_counts: A, out_score: A, out_where: A,
) -> None:  # fmt: skip
    """Results of Q requests: the hottest, then the best that were retrieved; what either lacks, the other fills.

    Args:
        hot, impact, created_at, labels: the fields of :class:`indexer.hot.Hot`.
        skip_pointer, skip: (Q+1,) and ordinals that each answer may not hold.
        active, born_after, pointer, allowed: the fields of :class:`indexer.retrieval.request.Filters`.
        head: places for the hottest; k: all places.
        counts, score, where: the fields of :class:`indexer.retrieval.request.Found`; out_*: likewise, k wide.
    """
    filters = active, born_after, pointer, allowed
    given = np.empty(k, np.int64)
    for request in range(counts.shape[1]):
        skips = np.sort(skip[skip_pointer[request] : skip_pointer[request + 1]])
        to = 0
        at = _next(hot, labels, created_at, 0, skips, filters, request)
        while to < head and at < hot.shape[0]:
            out_score[request, to], out_where[0, request, to] = impact[at], hot[at]
            out_where[1, request, to] = out_where[2, request, to] = OF_THE_LIST
            to += 1
            at = _next(hot, labels, created_at, at + 1, skips, filters, request)
        first = to
        given[:to] = np.sort(out_where[0, request, :to])
        for result in range(counts[0, request]):
            if to == k:
                break
            if _holds(given, first, where[0, request, result]):
                continue
            out_score[request, to] = score[request, result]
            for row in range(3):
                out_where[row, request, to] = where[row, request, result]
            to += 1
        if to < k and at < hot.shape[0]:
            mine = np.sort(out_where[0, request, first:to])
            while to < k and at < hot.shape[0]:
                if not _holds(mine, mine.shape[0], hot[at]):
                    out_score[request, to], out_where[0, request, to] = impact[at], hot[at]
                    out_where[1, request, to] = out_where[2, request, to] = OF_THE_LIST
                    to += 1
                at = _next(hot, labels, created_at, at + 1, skips, filters, request)
        out_counts[0, request], out_counts[1, request] = to, counts[1, request]
