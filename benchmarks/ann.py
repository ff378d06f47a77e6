"""Retrieval beside multi-ANN: queries a second at equal recall, on the same clustered embeddings.

    python -m benchmarks.ann [--size N] [--requests Q] [--repeats R] [--json]

Needs the extra ``bench`` (faiss, hnswlib). ``--size`` items of three facets, each 2,000 clusters of Zipf sizes in 64
dimensions, go through the writer and are rebalanced until idle. A request is five random items, the 500 best wanted.
The peers are faiss IVF-Flat (1,024 lists, 4,096 from 600,000 items on) and HNSW M16 (efConstruction 80), and hnswlib
M32, one index a facet: 100 neighbours for each trigger and facet, the union's best 500, merged by compiled code;
"searches alone" leaves that out. Ours reads the leaf of each trigger and its nearest neighbours ("probes"), whole,
without a prior, and lets a trigger give 100 in a facet (``per_trigger``), which is the same task. "First 64" reads the
first 64 of each leaf, with the engagement prior, "shares" with the default shares by votes. Recall is the share of
what exact searches give. Requests go one by one; "batches of 64" is ours alone.

Units: requests per second of the thread's own time, as other processes may run beside it, with two threads of the
clock; milliseconds of the clock. "Distance to memory" is bytes of embeddings read a second over what one thread reads
in order in the same run.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Final

from benchmarks import ann_runs
from benchmarks.apart import call
from benchmarks.options import Options, main, say
from benchmarks.report import Result

SIZE: Final = 300_000
K: Final = 500
EACH: Final = 100
ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
_ROW_BYTES: Final = 128


def run(options: Options) -> Result:
    """Measure."""
    requests, size = int(options.extra["requests"]), options.size
    threads = [1, 2] if options.extra["threads"] > 1 else [1]
    settings = {"items": size, "k": K, "each": EACH, "requests": requests, "repeats": options.repeats}
    result = Result("ann", settings)
    large = size >= 600_000
    arguments = {
        "path": str(options.workdir / "store"),
        "size": size,
        "codewords": 128 if size >= 20_000 else 8,
        "lists": 4_096 if large else min(1_024, max(4, size // 64)),
        "requests": requests,
        "k": K,
        "each": EACH,
        "probes": [0, 1, 2, 3, 5, 7, 15],
        "ivf": [1, 2, 4, 8, 16],
        "hnsw": [] if large else [64, 128, 256],
        "hnswlib": [] if large else [100],
        "threads": threads,
        "repeats": options.repeats,
    }
    say(f"building indexes of {size} items, then answering requests")
    found = call(ann_runs.measure, arguments, apart=options.apart, environment=ENVIRONMENT)
    result.details |= {"built": found["built"], "bytes_per_second_in_order": found["bandwidth"]}
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for threads_, systems in found["systems"].items():
        behind = "" if threads_ == "1" else f", {threads_} threads"
        curve = curves[threads_] = {}
        for name, answer in systems.items():
            result.add(f"requests, {name}{behind}", "/s", *answer["per_second"])
            if behind or name.endswith(ann_runs.ALONE):
                continue
            result.add(f"latency p50, {name}", "ms", answer["p50_ms"])
            result.add(f"latency p99, {name}", "ms", answer["p99_ms"])
            result.add(f"recall, {name}", "", answer["recall"])
        for name, answer in systems.items():
            if "first" not in name and not name.endswith(ann_runs.ALONE):
                family = name.partition(",")[0]
                rate = result.median(f"requests, {name}{behind}")
                curve.setdefault(family, []).append((answer["recall"], rate))
    result.details["curves"] = curves
    for threads_, curve in curves.items():
        points = {
            name: ([at for at, _ in sorted(rows)], [each for _, each in sorted(rows)]) for name, rows in curve.items()
        }
        axes = ("set recall", "requests/s")
        result.plot(f"curve-{threads_}", f"{size:,} items, threads: {threads_}", axes, points, log="y")
    for name, rates in found["batches"].items():
        result.add(f"requests, {name}, batches of 64", "/s", *rates)
    for name, answer in found["systems"]["1"].items():
        if "scored" in answer:
            bytes_ = answer["scored"] * _ROW_BYTES
            share = bytes_ * result.median(f"requests, {name}, batches of 64") / found["bandwidth"]
            result.add(f"distance to memory, {name}, batches of 64", "", share)
    _compare(result, curves, found["systems"]["1"], large=large)
    return result


def _compare(result: Result, curves: dict[str, Any], alone: dict[str, Any], *, large: bool) -> None:
    """Ratios at equal recall, and goals."""
    for threads, curve in curves.items():
        behind = "" if threads == "1" else f", {threads} threads"
        goals = [("IVF-Flat", None, 4.0), ("IVF-Flat", 0.66, 2.0)]
        if not large:
            goals = [
                ("IVF-Flat", None, 2.0),
                ("IVF-Flat", 0.8, 2.0),
                ("HNSW M16", 0.945, 1.5),
                ("hnswlib M32", 0.945, 1.5),
            ]
        for peer, wanted, goal in goals:
            if peer not in curve:
                continue
            level = curve["ours"][0][0] if wanted is None else wanted
            ratio = at_recall(curve["ours"], level) / at_recall(curve[peer], level)
            where = f"own leaves ({level:.3f})" if wanted is None else f"{level:g}"
            name = f"ours / {peer} at recall {where}{behind}"
            result.ratios.append((name, ratio))
            if not behind:
                result.goal(name, ratio, "at least", goal)
    first = "requests, ours, 0 probes, first 64"
    result.goal("requests/s, first 64, one by one", result.median(first), "at least", 30_000)
    result.goal("requests/s, first 64, batches of 64", result.median(f"{first}, batches of 64"), "at least", 30_000)
    result.goal("p99 ms, own leaves", alone["ours, 0 probes"]["p99_ms"], "at most", 1.0)


def at_recall(curve: list[tuple[float, float]], wanted: float) -> float:
    """Requests a second at a recall, between two settings by the logarithm; at an end the end's own."""
    points = sorted(curve)
    if wanted <= points[0][0]:
        return points[0][1]
    for (low, fast), (high, slow) in pairwise(points):
        if low <= wanted <= high:
            share = (wanted - low) / max(high - low, 1e-9)
            return math.exp(math.log(fast) * (1 - share) + math.log(slow) * share)
    return math.nan


if __name__ == "__main__":
    extra = {"requests": (200.0, "requests answered in a repeat"), "threads": (2.0, "2 to measure two threads as well")}
    raise SystemExit(main(__doc__, run, size=SIZE, extra=extra))
