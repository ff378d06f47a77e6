"""The product as an index alone: embeddings are given, a batch is one atomic write, syncs are in groups."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.apart import Answer, settle_heap
from indexer.batch import EventBatch, ItemRows, empty_engagements
from indexer.index import Index
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import retrieve_many
from indexer.warm import warm_up
from model_runtime.codebook import Codebook, raw_indices
from model_runtime.kmeans import residual_codebook
from schemas.config import Config, RetrievalConfig
from schemas.store import StoreMeta

F16 = npt.NDArray[np.float16]
U32 = npt.NDArray[np.uint32]

_SAMPLE: Final = 30_000
_CODEWORDS: Final = 128
_ITERATIONS: Final = 6
_ASKED: Final = 20


def ingest(*, vectors: str, folder: str, batch: int, coded: bool) -> Answer:
    """Write all items of a file of embeddings (n, F, d) float32.

    The codebook is fitted to a sample before, off the clock, as the peers' partitions are.

    Args:
        vectors: the file.
        folder: for the store.
        batch: items of one write.
        coded: raw indices are given too; else they are assigned on the clock.

    Returns:
        as :mod:`benchmarks.peers` does.
    """
    torch.set_num_threads(1)
    every = np.load(vectors)
    rng = np.random.default_rng(1)
    width = _CODEWORDS if len(every) >= 20_000 else 8
    books = residual_codebook(every[rng.permutation(len(every))[:_SAMPLE]], 2, width, _ITERATIONS, rng)
    codebook = Codebook(books, torch.device("cpu"))

    def code(some: F16) -> U32:
        return raw_indices(codebook.assign(some), width)

    given = code(every.astype(np.float16)) if coded else None
    warm_up()
    with Index.open(Path(folder, "store"), _meta(books), books, config := Config()) as index:
        commit_s = config.writer.group_commit_ms / 1_000
        settle_heap()
        latencies = []
        begun = synced = time.perf_counter()
        for start in range(0, len(every), batch):
            at = time.perf_counter()
            end = min(len(every), start + batch)
            some = every[start:end].astype(np.float16)
            index.writer.apply(_batch(start, some, code(some) if given is None else given[start:end]))
            if time.perf_counter() - synced > commit_s:
                index.store.sync()
                synced = time.perf_counter()
            latencies.append((time.perf_counter() - at) * 1_000)
        index.store.sync()
        seconds = time.perf_counter() - begun
        assert index.view.totals.items_live == len(every)
        return {
            "items": len(every),
            "seconds": seconds,
            "latencies_ms": latencies,
            "found": _found(index, len(every)),
            "leaves": [len(facet.alive()) for facet in index.view.facets],
        }


def _meta(books: npt.NDArray[np.float32]) -> StoreMeta:
    facets, layers, codewords, dim = books.shape
    return StoreMeta(
        generation="g000001", model_name="none", model_version="0", model_hash="m", codebook_hash="c",
        facets=facets, layers=layers, codewords=codewords, dim=dim, half_lives_s=(3_600, 86_400), created_at_ms=0,
    )  # fmt: skip


def _batch(start: int, vectors: F16, raw: U32) -> EventBatch:
    n = len(vectors)
    offsets = np.arange(start, start + n)
    items = ItemRows(
        [f"i{at}" for at in range(start, start + n)],
        1_700_000_000_000 + 1_000 * offsets,
        ["items-0"] * n,
        offsets,
        np.arange(n),
        vectors,
        raw,
        [b""] * n,
    )
    return EventBatch(items, empty_engagements(), {"items-0": start + n})


def _found(index: Index, count: int) -> float:
    """Share of some items that their own embeddings lead to, as new triggers that are like them."""
    view, reader = index.view, ViewReader(index.view)
    settings = RetrievalConfig(k=100, scan=1 << 30, engagement_weight=0.0)
    asked = np.linspace(0, count - 1, _ASKED).astype(np.int64)
    raws = view.items["raw"][asked]
    vectors = np.stack([view.vectors(asked, facet) for facet in range(view.meta.facets)], axis=1)
    requests = [Request([], vectors=vectors[[row]], raws=raws[[row]]) for row in range(len(asked))]
    found = retrieve_many(reader, requests, settings, view.totals.stream_time_ms)
    return float(np.mean([ordinal in each.ordinals for ordinal, each in zip(asked.tolist(), found, strict=True)]))
