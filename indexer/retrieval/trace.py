"""What many requests name, found in an index at once: their triggers, and what their answers may not hold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from indexer.retrieval.readers import IndexReader
from indexer.retrieval.request import Request, Triggers

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
_Number = TypeVar("_Number", np.int64, np.float32)


def trace(reader: IndexReader, requests: Sequence[Request]) -> tuple[Triggers, list[list[str]]]:
    """Triggers of all requests, of each the indexed ones first, then those given as vectors; and its missing ids."""
    located = reader.locate([item_id for request in requests for item_id in request.item_ids])
    ends = _pointers([len(request.item_ids) for request in requests])
    missing: list[list[str]] = [[] for _ in requests]
    if located.missing:
        lost = set(located.missing)
        missing = [[item_id for item_id in request.item_ids if item_id in lost] for request in requests]
        ends -= _pointers([len(each) for each in missing])
    triggers = Triggers(ends, located.leaves, located.vectors, ends, located.ordinals)
    if any(request.vectors is not None for request in requests):
        more, leaves, vectors = _given(reader, requests)
        pointer = ends + more
        triggers = triggers._replace(
            pointer=pointer,
            leaves=_interleaved(ends, located.leaves, more, leaves),
            vectors=_interleaved(ends, located.vectors, more, vectors),
        )
    if any(request.exclude for request in requests):
        more = _pointers([len(request.exclude) for request in requests])
        others = reader.ordinals([item_id for request in requests for item_id in request.exclude])
        skip = _interleaved(ends, located.ordinals, more, others)
        triggers = triggers._replace(skip_pointer=ends + more, skip=skip)
    return triggers, missing


def _given(reader: IndexReader, requests: Sequence[Request]) -> tuple[I64, I64, F32]:
    """Where each request's triggers given as vectors begin, the leaves and the embeddings of all of them."""
    none = np.empty((0, reader.meta.facets, reader.meta.dim), np.float32)
    each = [none if request.vectors is None else request.vectors for request in requests]
    vectors = np.ascontiguousarray(np.concatenate(each), np.float32)
    pointer = _pointers([len(some) for some in each])
    leaves = np.full(vectors.shape[:2], -1, np.int64)
    coded = [(first, request.raws) for first, request in zip(pointer.tolist(), requests, strict=False)]
    known = [first + np.arange(len(raws)) for first, raws in coded if raws is not None]
    if known:
        at = np.concatenate(known)
        leaves[at] = reader.enter(vectors[at], np.concatenate([raws for _, raws in coded if raws is not None]))
    return pointer, leaves, vectors


def _interleaved(
    ends: I64, rows: npt.NDArray[_Number], more: I64, others: npt.NDArray[_Number]
) -> npt.NDArray[_Number]:
    """Of each request its rows, ``ends[i]`` to ``ends[i + 1]``, then its other rows, ``more[i]`` to ``more[i + 1]``."""
    out = np.empty((len(rows) + len(others), *rows.shape[1:]), rows.dtype)
    out[np.arange(len(rows)) + np.repeat(more[:-1], np.diff(ends))] = rows
    out[np.arange(len(others)) + np.repeat(ends[1:], np.diff(more))] = others
    return out


def _pointers(lengths: Sequence[int]) -> I64:
    return np.array([0, *accumulate(lengths)], np.int64)
