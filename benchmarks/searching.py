"""Processes of the retrieval benchmark: requests answered by the index and by exact search, on one store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.apart import Answer, settle_heap
from benchmarks.report import alternating
from indexer.index import Index
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.retrieve import Candidates, prior, retrieve
from schemas.config import Config
from streamer.generations import load_model, open_index

I64 = npt.NDArray[np.int64]


class Exact:
    """Exact search: every item scored as the index scores those it reads.

    Similarity is the greatest of all triggers and facets, the prior is added, the k best are taken. As good as numpy
    makes it: embeddings in float32 facet by facet, one matrix product a facet, priors computed beforehand.
    """

    def __init__(self, index: Index, config: Config, now_ms: int) -> None:
        view, settings = index.view, config.retrieval
        live = np.flatnonzero(view.items["state"] == 1)
        self._ordinals = live
        self._row = np.full(len(view.items), -1, np.int64)
        self._row[live] = np.arange(len(live))
        self._vectors = [view.vectors(live, facet).astype(np.float32) for facet in range(view.meta.facets)]
        self._prior = prior(ViewReader(view), live, settings, now_ms).astype(np.float32)
        self._weight = np.float32(settings.similarity_weight)

    def search(self, triggers: I64, k: int) -> I64:
        """(k,) ordinals, best first; without the triggers."""
        rows = self._row[triggers]
        best = np.full(len(self._ordinals), -np.inf, np.float32)
        for vectors in self._vectors:
            np.maximum(best, (vectors[rows] @ vectors.T).max(0), out=best)
        best *= self._weight
        best += self._prior
        best[rows] = -np.inf
        k = min(k, len(best) - len(rows))
        top = np.argpartition(best, len(best) - k)[len(best) - k :]
        return self._ordinals[top[np.argsort(-best[top], kind="stable")]]


def measure(
    *,
    config: dict[str, Any],
    requests: int,
    triggers: int,
    settings: dict[str, dict[str, int]],
    repeats: int,
    exact_requests: int,
) -> Answer:
    """Answer the same requests with the index, once for each of the settings, and with exact search, in turn.

    Args:
        config: of a store that lies there.
        requests: how many.
        triggers: live items in each, drawn at random.
        settings: name -> overrides of the retrieval section.
        repeats: how often each system is measured.
        exact_requests: how many of the requests exact search answers.

    Returns:
        for each system ``per_second`` of each repeat, ``p50_ms`` and ``p99_ms`` of all, ``scored`` members per request;
        ``recall``, the share of exact search's results that it returned, and ``reach``, the share that it read.
    """
    found = Config.model_validate(config)
    with open_index(found, load_model(found)) as index:
        now_ms = index.view.totals.stream_time_ms
        reader, exact = ViewReader(index.view), Exact(index, found, now_ms)
        rng = np.random.default_rng(0)
        live = np.flatnonzero(index.view.items["state"] == 1)
        asked = [rng.choice(live, min(triggers, len(live)), replace=False) for _ in range(requests)]
        ids = [reader.item_ids(wanted) for wanted in asked]
        k = found.retrieval.k
        configs = {name: found.retrieval.model_copy(update=overrides) for name, overrides in settings.items()}

        def with_index(name: str) -> Callable[[int], Candidates]:
            return lambda at: retrieve(reader, ids[at], configs[name], now_ms)

        def exactly(at: int) -> I64:
            return exact.search(asked[at], k)

        systems: dict[str, Callable[[int], Candidates | I64]] = {name: with_index(name) for name in settings}
        systems["exact"] = exactly
        settle_heap()
        answers: Answer = {name: {"per_second": [], "latencies": []} for name in systems}
        results: dict[str, list[Candidates | I64]] = {}
        for name in alternating(list(systems), repeats):
            count = exact_requests if name == "exact" else requests
            systems[name](0)  # warm
            results[name] = []
            began = time.perf_counter()
            for at in range(count):
                start = time.perf_counter()
                results[name].append(systems[name](at))
                answers[name]["latencies"].append((time.perf_counter() - start) * 1_000)
            answers[name]["per_second"].append(count / (time.perf_counter() - began))
        for name, answer in answers.items():
            latencies = answer.pop("latencies")
            answer["p50_ms"], answer["p99_ms"] = (float(np.percentile(latencies, p)) for p in (50, 99))
            got = [found for found in results[name] if isinstance(found, Candidates)]
            answer["scored"] = float(np.mean([one.scored for one in got])) if got else float(len(live))
            true = [found for found in results["exact"] if not isinstance(found, Candidates)]
            answer["recall"] = _share([one.ordinals for one in got], true)
            answer["reach"] = _share([_read(reader, one, configs[name].scan) for one in got], true)
        sizes = np.concatenate([facet.sizes()[facet.alive()] for facet in index.view.facets])
        answers["leaf_sizes"] = {
            "leaves": len(sizes),
            "p50": float(np.percentile(sizes, 50)),
            "p99": float(np.percentile(sizes, 99)),
            "max": int(sizes.max()),
        }
        return answers


def _read(reader: ViewReader, found: Candidates, scan: int) -> I64:
    leaves = zip(found.selected.facet.tolist(), found.selected.leaf.tolist(), strict=True)
    return np.concatenate([reader.members(facet, leaf, scan) for facet, leaf in leaves])


def _share(found: Sequence[I64], true: Sequence[I64]) -> float:
    """Mean share of ``true[i]`` that is in ``found[i]``, over those that both have."""
    shares = [len(np.intersect1d(a, b)) / max(1, len(b)) for a, b in zip(found, true, strict=False)]
    return float(np.mean(shares)) if shares else 1.0
