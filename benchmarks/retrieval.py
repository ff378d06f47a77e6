"""Retrieval: requests a second, latency and recall of the live view's index lookup, against exact search.

    python -m benchmarks.retrieval [--size N] [--requests Q] [--repeats R] [--json]

An index of ``--size`` items in 2,000 topics of Zipf sizes is built through the pipeline and rebalanced until idle. A
request is five random live items as triggers, three facets, the 500 best wanted. The index answers it with the defaults
of ``[retrieval]`` and with settings that read more; its peer, exact search in numpy over the same embeddings in float32
in memory, scores every item by the same formula: greatest similarity over triggers and facets, plus the prior, which is
zero here as nobody engaged yet. One thread each, in one process without other work, the same requests in one order.

Units: requests per second; milliseconds; "scored" = members scored per request. Recall = share of exact search's 500
that the index returned; reach = share that was among the members it read: what separates the two is given up on
purpose, to give every trigger's leaves their places among the 500. The encoder is untrained and the codebook fitted to
the load: recall tells how well leaves hold neighbours together, not how good recommendations are.
"""

from __future__ import annotations

from benchmarks import searching, whole
from benchmarks.apart import call
from benchmarks.load import topical_lines, write_log
from benchmarks.model import make_fitted_model
from benchmarks.options import Options, main, say
from benchmarks.report import Result

SIZE = 300_000
TOPICS = 2_000
TRIGGERS = 5
K = 500
SETTINGS = {
    "defaults": {},
    "K 24, 8 probes": {"indices": 24, "probes": 8},
    "K 96, 8 probes, scan all": {"indices": 96, "probes": 8, "scan": 1 << 20},
    "K 384, 32 probes, scan all": {"indices": 384, "probes": 32, "scan": 1 << 20},
}
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run(options: Options) -> Result:
    """Measure."""
    n, requests = options.size, int(options.extra["requests"])
    exact_requests = min(requests, max(20, requests // 5))
    result = Result(
        "retrieval",
        {
            "items": n,
            "triggers": TRIGGERS,
            "k": K,
            "requests": requests,
            "requests_exact": exact_requests,
            "repeats": options.repeats,
        },
    )
    say(f"building an index of {n} items")
    items = topical_lines(n, topics=TOPICS)
    log = write_log(options.workdir / "log", items, [])
    make_fitted_model(options.workdir, items)
    config = whole.settings(options.workdir, log, retrieval={"k": K})
    built = call(whole.ingest, {"phases": [config]}, apart=options.apart)
    say("answering requests")
    arguments = {
        "config": config,
        "requests": requests,
        "triggers": TRIGGERS,
        "settings": SETTINGS,
        "repeats": options.repeats,
        "exact_requests": exact_requests,
    }
    found = call(searching.measure, arguments, apart=options.apart, environment=ONE_THREAD)
    result.details["leaf_sizes"] = found.pop("leaf_sizes")
    result.details["bounds"] = built["bounds"]
    for name, answer in found.items():
        result.add(f"requests, {name}", "/s", *answer["per_second"])
        result.add(f"latency p50, {name}", "ms", answer["p50_ms"])
        result.add(f"latency p99, {name}", "ms", answer["p99_ms"])
        result.add(f"scored, {name}", "", answer["scored"])
        if name != "exact":
            result.add(f"recall, {name}", "", answer["recall"])
            result.add(f"reach, {name}", "", answer["reach"])
    for name in SETTINGS:
        result.ratio(f"requests/s, {name} / exact", f"requests, {name}", "requests, exact")
    return result


if __name__ == "__main__":
    extra = {"requests": (500.0, "requests answered in a repeat")}
    raise SystemExit(main(__doc__, run, size=SIZE, extra=extra))
