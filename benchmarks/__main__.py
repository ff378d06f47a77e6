"""All benchmarks, one after the other.

    python -m benchmarks [--only NAME ...] [--json] [--no-broker] [--size N] [--repeats R]

Each writes its document to ``benchmarks/results/NAME.json``; a table of all is printed at the end, or one JSON document
of all. Without ``--size`` and ``--repeats`` each takes its own defaults, which is more than an hour on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.report import print_json, print_tables

NAMES: Final = (
    "ingest",
    "ingest_peers",
    "freshness",
    "rebalance",
    "retrieval",
    "ann",
    "snapshots",
    "memory",
    "recovery",
    "failover",
    "refresh",
)
RESULTS: Final = Path(__file__).parent / "results"


def main() -> int:
    """Run them; 1 if one could not be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--no-broker", action="store_true", help="leave out what needs a Kafka broker")
    parser.add_argument("--size", type=int, help="size of every load")
    parser.add_argument("--repeats", type=int, help="measurements of each system")
    given = parser.parse_args()
    flags = ["--no-broker"] if given.no_broker else []
    for name in ("size", "repeats"):
        if getattr(given, name) is not None:
            flags += [f"--{name}", str(getattr(given, name))]
    RESULTS.mkdir(exist_ok=True)
    documents: dict[str, dict[str, Any]] = {}
    failed = []
    for name in given.only:
        print(f"{name}:", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--json", *flags], stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            failed.append(name)
            continue
        (RESULTS / f"{name}.json").write_bytes(done.stdout)
        documents[name] = orjson.loads(done.stdout)
    if given.json:
        print_json(documents)
    else:
        print_tables(documents.values())
    for name in failed:
        print(f"{name} failed; its message is above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
