"""The hot list shares the places of an answer with what was retrieved."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from indexer.hot import Hot
from indexer.retrieval import hot_kernels
from indexer.retrieval.engine import Answered, blank
from indexer.retrieval.readers import IndexReader
from indexer.retrieval.request import Filters, Request
from schemas.config import RetrievalConfig

I64 = npt.NDArray[np.int64]

OF_THE_LIST = hot_kernels.OF_THE_LIST
"""Facet and leaf of a result that the hot list gave."""


def shared(
    answered: Answered, hot: Hot, skip: tuple[I64, I64], filters: Filters, config: RetrievalConfig, now_ms: int
) -> Answered:
    """Results of Q requests with the hot list's share.

    Args:
        answered: what was retrieved, by ordinals of the index.
        hot: the list.
        skip: (Q+1,) and ordinals that each request's answer may not hold.
        filters: of the requests.
        config: k and the share.
        now_ms: see :meth:`indexer.hot.Hot.scores`.
    """
    k = min(config.k, answered.k + len(hot.ordinal))
    out = blank(answered.requests, k, answered.chosen)
    found = out.found
    hot_kernels.share(*hot[:4], *skip, *filters, min(_places(config), k), k, *answered.found, *found)
    listed = found.where[1] == OF_THE_LIST
    found.score[listed] = hot.scores(found.score[listed], now_ms)
    return out


class Passing(NamedTuple):
    """Ordinals and scores of n items of a hot list, both (n,), the hottest first."""

    ordinals: I64
    scores: npt.NDArray[np.float64]


def passing(reader: IndexReader, request: Request, now_ms: int) -> Passing:
    """Those of an index's hot list that may be results of a request."""
    with reader.frozen():
        hot = reader.hot()
        skip = reader.ordinals([*request.item_ids, *request.exclude])
        filters = Filters.of([request], now_ms, reader.allowed)
    passes = ~np.isin(hot.ordinal, skip)
    if filters.active[0]:
        passes &= hot.created_at >= filters.born_after[0]
        if len(filters.allowed):
            passes &= filters.allowed[hot.labels]
    return Passing(hot.ordinal[passes], hot.scores(hot.impact[passes], now_ms))


def arranged(hot: I64, found: I64, config: RetrievalConfig) -> tuple[I64, I64, I64]:
    """Places of one answer of several lists.

    Args:
        hot: (h,) names of the items of the hot list, distinct, the hottest first.
        found: (n,) names of what was retrieved, distinct, the best first.
        config: k and the share.

    Returns:
        which of ``hot`` come first, which of ``found`` follow, which of ``hot`` fill the rest.
    """
    head = np.arange(min(_places(config), config.k, len(hot)))
    rest = np.flatnonzero(~np.isin(found, hot[head]))[: config.k - len(head)]
    fill = np.flatnonzero(~np.isin(hot[len(head) :], found[rest])) + len(head)
    return head, rest, fill[: config.k - len(head) - len(rest)]


def _places(config: RetrievalConfig) -> int:
    """How many of the k places are the hot list's."""
    return math.ceil(config.hot_share * config.k - 1e-9)  # 0.07 of 100 is 7
