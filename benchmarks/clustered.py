"""Clustered embeddings, and our index of them: no encoder, no events, what retrieval reads and nothing else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

from indexer.batch import EngagementRows, EventBatch, ItemRows
from indexer.index import Index
from schemas.config import Config
from schemas.store import StoreMeta

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

FACETS: Final = 3
DIM: Final = 64
CLUSTERS: Final = 2_000
_BATCH: Final = 8_192


def embeddings(count: int, seed: int = 0) -> F32:
    """(n, F, d) normalised embeddings of 2,000 clusters a facet, Zipf sizes, each facet its own clusters.

    With this noise and exponent IVF-Flat of 1,024 lists finds about .65, .84, .97 and .997 of 300,000 items' neighbours
    with nprobe 1, 4, 16 and 32.
    """
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, CLUSTERS + 1) ** 0.75
    out = np.empty((count, FACETS, DIM), np.float32)
    for facet in range(FACETS):
        centers = rng.standard_normal((CLUSTERS, DIM)).astype(np.float32)
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
        of = rng.permutation(rng.choice(CLUSTERS, count, p=weight / weight.sum()))
        noise = rng.standard_normal((count, DIM)).astype(np.float32)
        out[:, facet] = centers[of] + 0.35 / np.sqrt(DIM) * noise
    out /= np.linalg.norm(out, axis=2, keepdims=True)
    return out.astype(np.float16).astype(np.float32)


def build(path: Path, vectors: F32, codewords: int) -> tuple[Index, Config, dict[str, float]]:
    """Our index of the vectors, rebalanced until idle; seconds of each step."""
    books = np.empty((FACETS, 2, codewords, DIM), np.float32)
    raw = np.zeros((len(vectors), FACETS), np.uint32)
    for facet in range(FACETS):
        rest = np.ascontiguousarray(vectors[:, facet])
        for layer in range(2):
            kmeans = faiss.Kmeans(DIM, codewords, niter=8, seed=1, max_points_per_centroid=128)
            kmeans.train(rest)
            books[facet, layer] = kmeans.centroids
            nearest = kmeans.index.search(rest, 1)[1][:, 0]
            raw[:, facet] = raw[:, facet] * codewords + nearest.astype(np.uint32)
            rest = rest - books[facet, layer][nearest]
    meta = StoreMeta(
        generation="g000001", model_name="bench", model_version="1", model_hash="m", codebook_hash="c",
        facets=FACETS, layers=2, codewords=codewords, dim=DIM, half_lives_s=(3_600, 86_400), created_at_ms=0,
    )  # fmt: skip
    config = Config.model_validate({"rebalance": {"round_items": 200_000}})
    index = Index.open(path, meta, books, config)
    half = vectors.astype(np.float16)
    began = time.perf_counter()
    for start in range(0, len(vectors), _BATCH):
        end = min(len(vectors), start + _BATCH)
        index.writer.apply(_batch(start, end, half, raw))
    index.store.sync()
    written = time.perf_counter() - began
    index.compactor(config).run_until_idle()
    balanced = time.perf_counter() - began - written
    index.close()
    began = time.perf_counter()
    index = Index.open(path, meta, books, config)
    return index, config, {"written": written, "rebalanced": balanced, "opened": time.perf_counter() - began}


def _batch(start: int, end: int, vectors: npt.NDArray[np.float16], raw: npt.NDArray[np.uint32]) -> EventBatch:
    n = end - start
    none: I64 = np.empty(0, np.int64)
    return EventBatch(
        ItemRows(
            [f"i{at}" for at in range(start, end)],
            np.arange(start, end) + 1_700_000_000_000,
            ["items-0"] * n,
            np.arange(start, end),
            np.arange(n),
            vectors[start:end],
            raw[start:end],
            [b""] * n,
            np.arange(n),
        ),
        EngagementRows([], [], none, np.empty(0), [], none, [], none, []),
        {"items-0": end},
        letters={},
    )
