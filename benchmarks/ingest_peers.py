"""Ingestion with embeddings given, beside vector stores: items a second that are searchable through an index.

    python -m benchmarks.ingest_peers [--size N] [--repeats R] [--batch B] [--json]

``--size`` items of three facets (64-d float32, normalised, 2,000 clusters of Zipf sizes a facet) are added in batches
of ``--batch``. Ours takes each batch as one atomic write, routed to leaves, in the live view when the call returns, and
synced to the disk in groups as the daemon does; "codes given" has the raw indices beside the embeddings, "vectors
alone" assigns them too. Rebalancing is not in it: ``rebalance`` measures that.

Peers, each in a process of its own, with what its index learns partitions from given before the clock starts:
LanceDB (IVF_FLAT on each facet, ``optimize`` every 10 batches), Milvus Lite (HNSW M16, flushed every 20), Chroma (three
collections, HNSW M16), and two that hold nothing after a crash, as the ceiling: faiss IVF-Flat (1,024 lists) and faiss
HNSW (M16, efConstruction 80). All use the cores there are.

Peers come with the extra ``bench``; those that are not installed are reported as skipped. To keep them out of the
product's environment, give them one of their own with numpy, orjson and structlog, and name its interpreter in
``PEERS_PYTHON``.

Units: items per second; milliseconds per batch. "found": share of some items that a search for their own embeddings
gives, which says that they are searchable indeed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any, Final

import numpy as np

from benchmarks import index_only, peers
from benchmarks.apart import Answer, Apart, call
from benchmarks.load import embeddings
from benchmarks.options import Options, main, say
from benchmarks.report import Result, alternating

SIZE: Final = 100_000
BATCH: Final = 1_024
CODED, ALONE = "facetstream, codes given", "facetstream, vectors alone"
PEERS: Final = {
    "LanceDB, IVF_FLAT": (peers.lancedb, "lancedb"),
    "Milvus Lite, HNSW": (peers.milvus, "pymilvus"),
    "Chroma, HNSW": (peers.chroma, "chromadb"),
    "faiss IVF-Flat, in memory": (peers.ivf, "faiss"),
    "faiss HNSW, in memory": (peers.hnsw, "faiss"),
}
QUIET: Final = {"LANCE_LOG": "error", "GRPC_VERBOSITY": "NONE"}
GOALS: Final = {"LanceDB, IVF_FLAT": 1.5, "Milvus Lite, HNSW": 5.0, "Chroma, HNSW": 20.0}


def run(options: Options) -> Result:
    """Measure."""
    batch = int(options.extra["batch"])
    result = Result("ingest_peers", {"items": options.size, "batch": batch, "repeats": options.repeats})
    say(f"making embeddings of {options.size} items")
    vectors = options.workdir / "vectors.npy"
    np.save(vectors, embeddings(options.size))
    interpreter = os.environ.get("PEERS_PYTHON", sys.executable)
    systems: dict[str, Any] = {
        CODED: partial(_ours, coded=True, apart=options.apart),
        ALONE: partial(_ours, coded=False, apart=options.apart),
    }
    for name, (function, module) in PEERS.items():
        if _installed(interpreter, module):
            systems[name] = partial(_theirs, function, interpreter)
        else:
            result.skip(name, f"{module} is not installed in {interpreter}")
    for number, name in enumerate(alternating(list(systems), options.repeats)):
        say(f"{number + 1} of {len(systems) * options.repeats}: {name}")
        folder = options.workdir / f"{number}"
        folder.mkdir()
        answer: Answer = systems[name]({"vectors": str(vectors), "folder": str(folder), "batch": batch})
        result.add(f"items, {name}", "/s", answer["items"] / answer["seconds"])
        latencies = answer.pop("latencies_ms")
        for percent in (50, 99):
            result.add(f"batch p{percent}, {name}", "ms", float(np.percentile(latencies, percent)))
        result.add(f"found, {name}", "", answer["found"])
        result.details.setdefault(name, []).append(answer)
    result.goal("items/s, codes given", result.median(f"items, {CODED}"), "at least", 60_000)
    result.ratio("codes given / vectors alone", f"items, {CODED}", f"items, {ALONE}")
    for name in systems:
        if name in PEERS:
            ratio = result.ratio(f"codes given / {name}", f"items, {CODED}", f"items, {name}")
            if name in GOALS:
                result.goal(f"codes given / {name}", ratio, "at least", GOALS[name])
    return result


def _ours(arguments: dict[str, Any], *, coded: bool, apart: bool) -> Answer:
    return call(index_only.ingest, arguments | {"coded": coded}, apart=apart)


def _theirs(function: Any, interpreter: str, arguments: dict[str, Any]) -> Answer:
    with Apart(function, arguments, QUIET, interpreter) as running:
        return running.answer()


def _installed(interpreter: str, module: str) -> bool:
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([interpreter, "-c", look], check=False).returncode == 0


if __name__ == "__main__":
    raise SystemExit(main(__doc__, run, size=SIZE, extra={"batch": (BATCH, "items of one write")}))
