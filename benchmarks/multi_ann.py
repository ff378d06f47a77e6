"""Multi-ANN retrieval: one index a facet, searched once for each trigger; the best of the union are the answer."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any, Final, Protocol

import faiss
import hnswlib
import numpy as np
import numpy.typing as npt

from indexer.compiling import njit

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_TRAINED_ON: Final = 100_000


class Searcher(Protocol):
    """An index of one facet."""

    def search(self, queries: F32, each: int) -> tuple[F32, I64]:
        """Similarities and items, both (q, each), best first."""
        ...

    def tune(self, value: int) -> None:
        """Set how much is searched: nprobe or ef."""
        ...


def one_thread() -> None:
    """Have faiss search on the calling thread alone; to be said on each."""
    faiss.omp_set_num_threads(1)


class Faiss:
    """An index of faiss over inner products."""

    def __init__(self, index: Any, vectors: F32, setting: Callable[[Any, int], None]) -> None:
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        if not index.is_trained:
            index.train(vectors[:: max(1, len(vectors) // _TRAINED_ON)])
        index.add(vectors)
        faiss.omp_set_num_threads(1)
        self._index = index
        self._set = setting

    def search(self, queries: F32, each: int) -> tuple[F32, I64]:
        """See :class:`Searcher`."""
        return self._index.search(queries, each)  # type: ignore[no-any-return]

    def tune(self, value: int) -> None:
        """See :class:`Searcher`."""
        self._set(self._index, value)


class Hnswlib:
    """An index of hnswlib over inner products."""

    def __init__(self, vectors: F32, links: int, effort: int) -> None:
        self._index = hnswlib.Index("ip", vectors.shape[1])
        self._index.init_index(len(vectors), M=links, ef_construction=effort)
        self._index.add_items(vectors, num_threads=os.cpu_count() or 1)
        self._index.set_num_threads(1)

    def search(self, queries: F32, each: int) -> tuple[F32, I64]:
        """See :class:`Searcher`."""
        found, distance = self._index.knn_query(queries, k=each)
        return 1 - distance, found.astype(np.int64)

    def tune(self, value: int) -> None:
        """See :class:`Searcher`."""
        self._index.set_ef(value)


def exact(vectors: F32) -> Searcher:
    """All items compared."""
    return Faiss(faiss.IndexFlatIP(vectors.shape[1]), vectors, lambda _index, _value: None)


def ivf_flat(vectors: F32, lists: int) -> Searcher:
    """IVF-Flat of faiss; tuned by nprobe."""
    dim = vectors.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
    return Faiss(index, vectors, lambda index, value: setattr(index, "nprobe", value))


def hnsw(vectors: F32, links: int = 16, effort: int = 80) -> Searcher:
    """HNSW of faiss; tuned by efSearch."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = effort
    return Faiss(index, vectors, lambda index, value: setattr(index.hnsw, "efSearch", value))


class MultiAnn:
    """Searchers of all facets.

    Args:
        vectors: (n, F, d) float32.
        make: a searcher of (n, d).
        each: neighbours of each trigger in each facet.
        prior: (n,) float32, added to the similarities of what was found before the best are taken; None: nothing.
    """

    def __init__(self, vectors: F32, make: Callable[[F32], Searcher], each: int, prior: F32 | None = None) -> None:
        self._facets = [np.ascontiguousarray(vectors[:, facet]) for facet in range(vectors.shape[1])]
        self.searchers = [make(facet) for facet in self._facets]
        self.each = each
        self.prior = prior
        self.stamps = np.zeros(len(vectors), np.int32)

    def twin(self, each: int | None = None, prior: F32 | None = None) -> MultiAnn:
        """The same indexes, to be asked from another thread or otherwise."""
        other = copy.copy(self)
        other.stamps = np.zeros_like(self.stamps)
        if each is not None:
            other.each, other.prior = each, prior
        return other

    def tune(self, value: int) -> None:
        """Set how much is searched."""
        for searcher in self.searchers:
            searcher.tune(value)

    def search_only(self, triggers: I64) -> tuple[list[F32], list[I64]]:
        """What the searches alone give."""
        found = [
            searcher.search(facet[triggers], self.each)
            for searcher, facet in zip(self.searchers, self._facets, strict=True)
        ]
        return [score for score, _ in found], [items for _, items in found]

    def search(self, triggers: I64, k: int) -> I64:
        """(k,) items, best first; the triggers left out."""
        scores, found = self.search_only(triggers)
        score, items = np.concatenate(scores, axis=None), np.concatenate(found, axis=None)
        if self.prior is not None:
            score = score + self.prior[items]
        best: I64 = _first_of_each(items, np.argsort(-score), triggers, self.stamps, k)
        return best


@njit(cache=True, nogil=True)
def _first_of_each(items: Any, order: Any, triggers: Any, stamps: Any, k: int) -> Any:
    """The first k distinct items in an order; as quick as it gets, as a peer's merge should not decide."""
    out, count = np.empty(k, np.int64), 0
    for item in triggers:
        stamps[item] = 1
    for at in order:
        item = items[at]
        if item < 0 or stamps[item]:  # faiss fills up with -1
            continue
        stamps[item] = 1
        out[count] = item
        count += 1
        if count == k:
            break
    for item in triggers:
        stamps[item] = 0
    for at in range(count):
        stamps[out[at]] = 0
    return out[:count]
