"""Retrieval beside multi-ANN: queries a second at equal recall, one thread, on the same clustered embeddings.

    python -m benchmarks.ann [--size N] [--requests Q] [--repeats R] [--json]

Needs the extra ``bench`` (faiss). ``--size`` items of three facets, each 2,000 clusters of Zipf sizes in 64 dimensions,
go through the writer and are rebalanced until idle. A request is five random items, the 500 best wanted. Ours reads the
leaf of each trigger and its nearest neighbours ("probes"), whole, without a prior and without shares by votes; with
"first 64 with prior" the defaults in all else. The peers are faiss IVF-Flat (1,024 lists, 4,096 from 600,000 items on)
and HNSW M16 (efConstruction 80), one index a facet, 500 neighbours for each trigger and facet, the union's best 500.
Recall is the share of what 15 exact searches give that way: the best there are. Requests go one by one; "batches of
64" is ours alone.

Units: requests per second of the thread's own time, as other processes may run beside it; milliseconds of the clock.
"""

from __future__ import annotations

from typing import Final

from benchmarks import multi_ann
from benchmarks.apart import call
from benchmarks.options import Options, main, say
from benchmarks.report import Result

SIZE: Final = 300_000
K: Final = 500
ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1"}


def run(options: Options) -> Result:
    """Measure."""
    requests = int(options.extra["requests"])
    result = Result("ann", {"items": options.size, "k": K, "requests": requests, "repeats": options.repeats})
    arguments = {
        "path": str(options.workdir / "store"),
        "size": options.size,
        "codewords": 128 if options.size >= 20_000 else 8,
        "lists": 4_096 if options.size >= 600_000 else min(1_024, max(4, options.size // 64)),
        "requests": requests,
        "k": K,
        "probes": [0, 1, 3, 7, 15],
        "ivf": [1, 4, 16, 32],
        "hnsw": [64, 128, 256] if options.size < 600_000 else [64],
        "repeats": options.repeats,
    }
    say(f"building indexes of {options.size} items, then answering requests")
    found = call(multi_ann.measure, arguments, apart=options.apart, environment=ENVIRONMENT)
    result.details["built"] = found.pop("built")
    for name, answer in found.items():
        result.add(f"requests, {name}", "/s", *answer["per_second"])
        if "p50_ms" in answer:
            result.add(f"latency p50, {name}", "ms", answer["p50_ms"])
            result.add(f"latency p99, {name}", "ms", answer["p99_ms"])
            result.add(f"recall, {name}", "", answer["recall"])
    result.ratio("ours, 0 probes / IVF-Flat, nprobe 1", "requests, ours, 0 probes", "requests, IVF-Flat, nprobe 1")
    return result


if __name__ == "__main__":
    extra = {"requests": (300.0, "requests answered in a repeat")}
    raise SystemExit(main(__doc__, run, size=SIZE, extra=extra))
