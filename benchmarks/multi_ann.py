"""Retrieval beside multi-ANN: the same clustered embeddings in our live view, in faiss IVF-Flat and in faiss HNSW."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.apart import Answer, settle_heap
from benchmarks.report import alternating
from indexer.batch import EngagementRows, EventBatch, ItemRows
from indexer.index import Index
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import retrieve_many
from schemas.config import Config, RetrievalConfig
from schemas.store import StoreMeta

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

FACETS: Final = 3
DIM: Final = 64
CLUSTERS: Final = 2_000
EACH: Final = 500  # with fewer a trigger in a dense cluster could not give all of the best
_BATCH: Final = 8_192


def embeddings(count: int, seed: int = 0) -> F32:
    """(n, F, d) normalised embeddings of 2,000 clusters a facet, Zipf sizes, each facet its own clusters."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, CLUSTERS + 1)
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


class MultiAnn:
    """One faiss index a facet; a request searches each once for each trigger and keeps the best of the union."""

    def __init__(self, vectors: F32, make: Callable[[], Any]) -> None:
        self._vectors = vectors
        self.indexes = []
        for facet in range(FACETS):
            index = make()
            mine = np.ascontiguousarray(vectors[:, facet])
            if not index.is_trained:
                index.train(mine[:: max(1, len(mine) // 100_000)])
            index.add(mine)
            self.indexes.append(index)

    def search(self, triggers: I64, k: int) -> I64:
        """(k,) ordinals, best first; the triggers left out."""
        found, scores = [], []
        for facet, index in enumerate(self.indexes):
            score, ids = index.search(np.ascontiguousarray(self._vectors[triggers, facet]), EACH)
            found.append(ids.ravel())
            scores.append(score.ravel())
        ids, score = np.concatenate(found), np.concatenate(scores)
        order = np.argsort(-score)
        _, first = np.unique(ids[order], return_index=True)
        best = ids[order[np.sort(first)]]
        return best[~np.isin(best, triggers)][:k]


def measure(
    *,
    path: str,
    size: int,
    codewords: int,
    lists: int,
    requests: int,
    k: int,
    probes: list[int],
    ivf: list[int],
    hnsw: list[int],
    repeats: int,
) -> Answer:
    """The same requests to each system in turn, one thread.

    Returns:
        for each system ``per_second`` of each repeat by the thread's own time (others may use the machine), ``p50_ms``,
        ``p99_ms`` and ``recall`` of exact search's best k;
        ``seconds`` it took to build ours.
    """
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    vectors = embeddings(size)
    index, config, seconds = build(Path(path), vectors, codewords)
    triggers = [np.random.default_rng([1, at]).choice(size, 5, replace=False) for at in range(requests)]
    exact = MultiAnn(vectors, lambda: faiss.IndexFlatIP(DIM))
    true = [exact.search(each, k) for each in triggers]
    flat = MultiAnn(vectors, lambda: _ivf(lists))
    graph = MultiAnn(vectors, _hnsw) if hnsw else None
    faiss.omp_set_num_threads(1)
    reader = ViewReader(index.view)
    now_ms = index.view.totals.stream_time_ms
    asked = [Request([f"i{at}" for at in each.tolist()]) for each in triggers]
    base = config.retrieval.model_copy(update={"k": k, "vote_share": 0.0, "engagement_weight": 0.0, "scan": 1 << 30})
    systems: dict[str, Callable[[int], I64]] = {}

    def ours(settings: RetrievalConfig) -> Callable[[int], I64]:
        return lambda at: retrieve_many(reader, [asked[at]], settings, now_ms)[0].ordinals

    for n in probes:
        update = {"probes": n, "indices": 15 * (n + 1)}
        systems[f"ours, {n} probes"] = ours(base.model_copy(update=update))
        first = update | {"scan": 64, "engagement_weight": 0.05, "vote_share": 1.0}
        if n in {0, 3}:
            systems[f"ours, {n} probes, first 64 with prior"] = ours(base.model_copy(update=first))

    def theirs(peer: MultiAnn, name: str, value: int) -> Callable[[int], I64]:
        def ask(at: int) -> I64:
            for each in peer.indexes:
                if name == "nprobe":
                    each.nprobe = value
                else:
                    each.hnsw.efSearch = value
            return peer.search(triggers[at], k)

        return ask

    for value in ivf:
        systems[f"IVF-Flat, nprobe {value}"] = theirs(flat, "nprobe", value)
    for value in hnsw if graph is not None else ():
        assert graph is not None
        systems[f"HNSW M16, ef {value}"] = theirs(graph, "ef", value)
    settle_heap()
    answers: Answer = {name: {"per_second": [], "latencies": []} for name in systems}
    for name in alternating(list(systems), repeats):
        ask = systems[name]
        for at in range(20):
            ask(at)
        begun, found = time.thread_time(), []
        for at in range(requests):
            start = time.perf_counter()
            found.append(ask(at))
            answers[name]["latencies"].append((time.perf_counter() - start) * 1_000)
        answers[name]["per_second"].append(requests / (time.thread_time() - begun))
        answers[name]["recall"] = float(
            np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)])
        )
    for n in probes:
        settings = base.model_copy(update={"probes": n, "indices": 15 * (n + 1)})
        quick = settings.model_copy(update={"scan": 64, "engagement_weight": 0.05, "vote_share": 1.0})
        for name, each in (("", settings), (", first 64 with prior", quick)):
            if name and n not in {0, 3}:
                continue
            rates = []
            for _ in range(repeats):
                begun = time.thread_time()
                retrieve_many(reader, asked, each, now_ms)
                rates.append(requests / (time.thread_time() - begun))
            answers[f"ours, {n} probes{name}, batches of 64"] = {"per_second": rates, "latencies": [], "recall": None}
    for answer in answers.values():
        latencies = answer.pop("latencies")
        if latencies:
            answer["p50_ms"], answer["p99_ms"] = (float(np.percentile(latencies, p)) for p in (50, 99))
    sizes = np.concatenate([facet.sizes()[facet.alive()] for facet in index.view.facets])
    answers["built"] = seconds | {
        "leaves": len(sizes),
        "p50": float(np.percentile(sizes, 50)),
        "p99": float(np.percentile(sizes, 99)),
        "max": int(sizes.max()),
        "bytes_per_item": index.view.nbytes / size,
    }
    index.close()
    return answers


def _ivf(lists: int) -> Any:
    return faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, lists, faiss.METRIC_INNER_PRODUCT)


def _hnsw() -> Any:
    index = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    return index
