"""The command line that all benchmarks share."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.apart import quiet_logs
from benchmarks.report import Result, print_json, print_tables


@dataclass(frozen=True, slots=True)
class Options:
    """What a run was asked for.

    Attributes:
        size: of the load; each benchmark says in which unit.
        repeats: how often each system is measured; medians count.
        broker: whether to measure through a broker where one can be had.
        apart: whether each measurement gets a fresh process.
        workdir: an empty folder, removed afterwards.
        extra: a benchmark's own numbers by name.
    """

    size: int
    repeats: int
    broker: bool
    apart: bool
    workdir: Path
    extra: Mapping[str, float] = field(default_factory=dict)


def main(
    module_doc: str | None,
    run: Callable[[Options], Result],
    *,
    size: int,
    repeats: int = 3,
    extra: Mapping[str, tuple[float, str]] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, run, print.

    Args:
        module_doc: of the benchmark; shown by ``--help``.
        run: the benchmark.
        size: default of ``--size``.
        repeats: default of ``--repeats``.
        extra: further numeric options: name -> (default, what it means).
        argv: the arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=module_doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--size", type=int, default=size, help=f"size of the load ({size})")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"measurements of each system ({repeats})")
    parser.add_argument("--no-broker", action="store_true", help="leave out what needs a Kafka broker")
    parser.add_argument(
        "--in-process", action="store_true", help="no fresh process per measurement: starts faster, measures worse"
    )
    for name, (default, meaning) in (extra or {}).items():
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{meaning} ({default:g})")
    given = parser.parse_args(argv)
    if given.size < 1 or given.repeats < 1:
        parser.error("--size and --repeats must be at least 1")
    quiet_logs()
    with tempfile.TemporaryDirectory(prefix="facetstream-benchmark-") as workdir:
        extras = {name: float(getattr(given, name.replace("-", "_"))) for name in extra or {}}
        options = Options(given.size, given.repeats, not given.no_broker, not given.in_process, Path(workdir), extras)
        document = run(options).document()
    if given.json:
        print_json(document)
    else:
        print_tables([document])
    return 0


def say(text: str) -> None:
    """Tell whoever watches what is being done; on standard error, so that ``--json`` stays clean."""
    print(f"  {text}", file=sys.stderr, flush=True)
