"""The process of the comparison with multi-ANN: the same requests to each system in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks import multi_ann
from benchmarks.apart import Answer, settle_heap
from benchmarks.clustered import build, embeddings
from benchmarks.multi_ann import MultiAnn
from benchmarks.report import alternating
from indexer.compiling import njit
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import retrieve_many
from schemas.config import RetrievalConfig

I64 = npt.NDArray[np.int64]
Ask = Callable[[int], I64]


ALONE: Final = ", searches alone"


class Systems:
    """Named ways to answer request number i, each made anew for each thread that asks.

    Attributes:
        make: name -> what makes a thread's own way.
        prepare: name -> what is to be set before it is asked.
    """

    def __init__(self) -> None:
        self.make: dict[str, Callable[[], Ask]] = {}
        self.prepare: dict[str, Callable[[], None]] = {}

    def add(self, name: str, make: Callable[[], Ask], prepare: Callable[[], None] = lambda: None) -> None:
        """One more."""
        self.make[name], self.prepare[name] = make, prepare

    def peer(self, name: str, peer: MultiAnn, value: int, triggers: Sequence[I64], k: int) -> None:
        """Multi-ANN at one setting, and its searches alone, which give no answer yet."""

        def searching() -> Ask:
            own = peer.twin()
            return lambda at: own.search(triggers[at], k)

        def alone(at: int) -> I64:
            peer.search_only(triggers[at])
            return triggers[at]

        self.add(name, searching, lambda: peer.tune(value))
        self.add(f"{name}{ALONE}", lambda: alone, lambda: peer.tune(value))

    def measure(self, requests: int, repeats: int, threads: int) -> dict[str, Answer]:
        """Each system once a repeat, there and back again.

        Returns:
            for each system ``per_second`` of each repeat, by the thread's own time (other processes may use the
            machine) for one thread, else by the clock; ``p50_ms`` and ``p99_ms`` of all requests by the clock;
            ``answers`` of the last repeat, from the first thread.
        """
        out: dict[str, Answer] = {name: {"per_second": [], "latencies": []} for name in self.make}
        with ThreadPoolExecutor(threads, initializer=multi_ann.one_thread) as pool:
            asks = {name: [make() for _ in range(threads)] for name, make in self.make.items()}
            for name in alternating(list(self.make), repeats):
                self.prepare[name]()
                for ask in asks[name]:
                    for at in range(min(20, requests)):
                        ask(at)
                began = time.perf_counter()
                if threads == 1:
                    runs = [_run(asks[name][0], range(requests))]
                else:
                    parts = [range(part, requests, threads) for part in range(threads)]
                    runs = list(pool.map(_run, asks[name], parts))
                elapsed = runs[0][0] if threads == 1 else time.perf_counter() - began
                out[name]["per_second"].append(requests / elapsed)
                out[name]["latencies"] += [each for _, latencies, _ in runs for each in latencies]
                out[name]["answers"] = runs[0][2]
        for answer in out.values():
            latencies = answer.pop("latencies")
            answer["p50_ms"], answer["p99_ms"] = (float(np.percentile(latencies, p)) for p in (50, 99))
        return out


def _run(ask: Ask, numbers: range) -> tuple[float, list[float], list[I64]]:
    """Seconds of this thread's time, milliseconds and answer of each."""
    latencies, answers = [], []
    began = time.thread_time()
    for at in numbers:
        start = time.perf_counter()
        answers.append(ask(at))
        latencies.append((time.perf_counter() - start) * 1_000)
    return time.thread_time() - began, latencies, answers


def recall(found: Sequence[I64], true: Sequence[I64]) -> float:
    """Mean share of ``true[i]`` that is in ``found[i]``."""
    return float(np.mean([len(np.intersect1d(a, b)) / max(1, len(b)) for a, b in zip(found, true, strict=True)]))


def measure(
    *,
    path: str,
    size: int,
    codewords: int,
    lists: int,
    requests: int,
    k: int,
    each: int,
    probes: list[int],
    ivf: list[int],
    hnsw: list[int],
    hnswlib: list[int],
    threads: list[int],
    repeats: int,
) -> Answer:
    """The same requests to each system in turn.

    Returns:
        ``systems``: for each number of threads what :meth:`Systems.measure` found, with ``recall`` of what exact
        searches give; ``built``; ``bandwidth``, bytes a second that one thread reads in order.
    """
    vectors = embeddings(size)
    index, config, seconds = build(Path(path), vectors, codewords)
    triggers = [np.random.default_rng([1, at]).choice(size, 5, replace=False) for at in range(requests)]
    true_of = MultiAnn(vectors, multi_ann.exact, each)
    true = [true_of.search(wanted, k) for wanted in triggers]
    del true_of
    reader = ViewReader(index.view)
    now_ms = index.view.totals.stream_time_ms
    asked = [Request([f"i{at}" for at in wanted.tolist()]) for wanted in triggers]
    systems = Systems()

    def ours(settings: RetrievalConfig) -> Callable[[], Ask]:
        return lambda: lambda at: retrieve_many(reader, [asked[at]], settings, now_ms)[0].ordinals

    base = {"k": k, "vote_share": 0.0, "engagement_weight": 0.0, "scan": 1 << 30}
    first = {"scan": 64, "engagement_weight": 0.05}
    settings: dict[str, RetrievalConfig] = {}
    for n in probes:
        here = base | {"probes": n, "indices": 15 * (n + 1)}
        settings[f"ours, {n} probes"] = config.retrieval.model_copy(update=here | {"per_trigger": each})
        if n in {0, 3}:
            settings[f"ours, {n} probes, first 64"] = config.retrieval.model_copy(update=here | first)
            shared = here | first | {"vote_share": 1.0}
            settings[f"ours, {n} probes, first 64, shares"] = config.retrieval.model_copy(update=shared)
    for name, one in settings.items():
        systems.add(name, ours(one))

    def peers(name: str, values: list[int], make: Callable[[npt.NDArray[np.float32]], multi_ann.Searcher]) -> None:
        if values:
            peer = MultiAnn(vectors, make, each)
            for value in values:
                systems.peer(f"{name} {value}", peer, value, triggers, k)

    peers("IVF-Flat, nprobe", ivf, lambda facet: multi_ann.ivf_flat(facet, lists))
    peers("HNSW M16, ef", hnsw, multi_ann.hnsw)
    peers("hnswlib M32, ef", hnswlib, lambda facet: multi_ann.Hnswlib(facet, 32, 100))
    settle_heap()
    out: Answer = {"systems": {}}
    for count in threads:
        found = systems.measure(requests, repeats, count)
        for answer in found.values():
            got = answer.pop("answers")
            answer["recall"] = recall(got, true[::count])
        out["systems"][str(count)] = found
    for name, one in settings.items():
        scored = [answer.scored for answer in retrieve_many(reader, asked, one, now_ms)]
        out["systems"][str(threads[0])][name]["scored"] = float(np.mean(scored))
    out["batches"] = {name: _batches(reader, asked, one, now_ms, repeats) for name, one in settings.items()}
    sizes = np.concatenate([facet.sizes()[facet.alive()] for facet in index.view.facets])
    out["built"] = seconds | {
        "leaves": len(sizes),
        "p50": float(np.percentile(sizes, 50)),
        "p99": float(np.percentile(sizes, 99)),
        "max": int(sizes.max()),
        "bytes_per_item": index.view.nbytes / size,
    }
    out["bandwidth"] = bandwidth()
    index.close()
    return out


def _batches(
    reader: ViewReader, asked: list[Request], settings: RetrievalConfig, now_ms: int, repeats: int
) -> list[float]:
    rates = []
    for _ in range(repeats + 1):
        began = time.thread_time()
        for one in retrieve_many(reader, asked, settings, now_ms):
            assert len(one.ordinals)
        rates.append(len(asked) / (time.thread_time() - began))
    return rates[1:]


@njit(cache=True, nogil=True)
def _sum(numbers: Any) -> Any:
    total = np.int64(0)
    for at in range(numbers.shape[0]):
        total += numbers[at]
    return total


def bandwidth() -> float:
    """Bytes a second that one thread reads in order, the best of ten; half a gigabyte, far beyond any cache."""
    numbers = np.ones(1 << 26, np.int64)
    rates = []
    for _ in range(11):
        began = time.perf_counter()
        _sum(numbers)
        rates.append(numbers.nbytes / (time.perf_counter() - began))
    return max(rates[1:])
