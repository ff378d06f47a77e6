"""Ingestion: items and engagements a second through the whole pipeline, against the bare path.

    python -m benchmarks.ingest [--size N] [--repeats R] [--no-broker] [--json]

``--size`` items and as many engagements are read from an event log, then from a real Kafka broker that holds them
already (four partitions a topic), into an empty store: first all items, then all engagements. Each measurement has a
process of its own. A rate is records divided by the seconds from the start of reading until the last record was
retrievable; model loading and the opening of the store are not in it, group commits are.

Systems: the pipeline as the daemon runs it, with rebalancing (the default) and without; and the bare path, which is
the peer: poll, parse, encode, assign, put, and nothing else (:mod:`benchmarks.bare` says what it leaves out). The bare
path runs in two threads, as the pipeline does, and in one; the faster of the two is what the pipeline is compared with.

Units: records per second; microseconds of processor time per record (all threads of the process), which a busy machine
disturbs less. Ratio "bare / ours": how many times faster the bare path is than the pipeline with its defaults; ratio
"processor time, ours / bare" compares the work alone, whatever the two cores were doing besides. The model is
untrained: F = 3 facets, L = 2 layers of M = 256 codewords, d = 64, one torch thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import bare, whole
from benchmarks.apart import Answer, call
from benchmarks.broker import broker, fresh_topics, produce
from benchmarks.load import engagement_lines, item_lines, write_log
from benchmarks.model import make_model
from benchmarks.options import Options, main, say
from benchmarks.report import Result, alternating

SIZE = 300_000
PARTITIONS = 4
STREAMS = ("items", "engagements")
Place = tuple[Path | None, dict[str, Any] | None]
"""Where events come from: an event log, or the ``kafka`` section that names topics."""
OURS, WITHOUT, BARE = "facetstream", "facetstream, no rebalancing", "bare path"


def run(options: Options) -> Result:
    """Measure, first from the event log, then through the broker."""
    n = options.size
    result = Result("ingest", {"items": n, "engagements": n, "repeats": options.repeats, "partitions": PARTITIONS})
    say(f"making {n} items and {n} engagements")
    items, engagements = item_lines(n), engagement_lines(n, n)
    logs = {
        "items": write_log(options.workdir / "items", items, []),
        "engagements": write_log(options.workdir / "engagements", items, engagements),
    }
    make_model(options.workdir)
    sources: list[Place] = [(logs[stream], None) for stream in STREAMS]
    systems = {
        OURS: partial(_ours, rebalance=True),
        WITHOUT: partial(_ours, rebalance=False),
        f"{BARE}, two threads": partial(_bare, threads=2),
        f"{BARE}, one thread": partial(_bare, threads=1),
    }
    _measure(result, options, "event log", sources, systems)

    with broker(wanted=options.broker) as (bootstrap, why_not):
        if bootstrap is None:
            result.skip("through the broker", why_not)
        else:
            full = _topics_with(bootstrap, options.workdir, engagements)
            result.details["produced_per_second"] = round(full.pop("rate"))
            through: list[Place] = [(None, full["items"]), (None, full["engagements"])]
            _measure(result, options, "broker", through, {name: systems[name] for name in (OURS, *list(systems)[2:])})

    result.goal("items/s, event log", result.median(f"items, event log: {OURS}"), "at least", 30_000)
    result.goal("engagements/s, event log", result.median(f"engagements, event log: {OURS}"), "at least", 60_000)
    if not result.skipped:
        result.goal("items/s, broker", result.median(f"items, broker: {OURS}"), "at least", 20_000)
    for name, value in result.ratios:
        if name.startswith("bare / ours"):
            result.goal(name, value, "at most", 1.4)
    return result


def _topics_with(bootstrap: str, workdir: Path, engagements: list[bytes]) -> dict[str, Any]:
    """``kafka`` sections of the two phases: the same items in both, engagements in the second alone."""
    kafka, later = fresh_topics(bootstrap, PARTITIONS), fresh_topics(bootstrap, PARTITIONS)
    say("producing to the broker")
    rate = produce(workdir / "items", kafka)
    only = write_log(workdir / "only-engagements", [], engagements)
    produce(only, later)
    return {"rate": rate, "items": kafka, "engagements": kafka | {"engagements_topic": later["engagements_topic"]}}


def _measure(
    result: Result,
    options: Options,
    where: str,
    sources: Sequence[Place],
    systems: dict[str, Any],
) -> None:
    for number, name in enumerate(alternating(list(systems), options.repeats)):
        say(f"{where}, {number + 1} of {len(systems) * options.repeats}: {name}")
        folder = f"data-{where}-{number}".replace(" ", "-")
        answer: Answer = systems[name](options, sources, folder)
        shutil.rmtree(options.workdir / folder)
        for stream, phase in zip(STREAMS, answer["phases"], strict=True):
            assert phase["records"] == options.size, f"{name} applied {phase['records']} of {options.size} {stream}"
            result.add(f"{stream}, {where}: {name}", "/s", phase["records"] / phase["applied_s"])
            us = phase["cpu_to_applied_s"] / phase["records"] * 1e6
            result.add(f"processor time, {stream}, {where}: {name}", "us", us)
            result.details.setdefault(f"{stream}, {where}: {name}", []).append(phase)
    for stream in STREAMS:
        fastest = max(
            (name for name in systems if name.startswith(BARE)), key=lambda s: result.median(f"{stream}, {where}: {s}")
        )
        ours, theirs = f"{stream}, {where}: {OURS}", f"{stream}, {where}: {fastest}"
        result.ratio(f"bare / ours, {stream}, {where}", theirs, ours)
        result.ratio(
            f"processor time, ours / bare, {stream}, {where}", *(f"processor time, {name}" for name in (ours, theirs))
        )


def _phases(
    options: Options,
    sources: Sequence[Place],
    folder: str,
    **sections: dict[str, Any],
) -> list[dict[str, Any]]:
    data_dir = str(options.workdir / folder)
    return [whole.settings(options.workdir, log, kafka, **sections) | {"data_dir": data_dir} for log, kafka in sources]


def _ours(options: Options, sources: Sequence[Place], folder: str, *, rebalance: bool) -> Answer:
    phases = _phases(options, sources, folder, rebalance={"enabled": rebalance})
    return call(whole.ingest, {"phases": phases}, apart=options.apart)


def _bare(options: Options, sources: Sequence[Place], folder: str, *, threads: int) -> Answer:
    phases = _phases(options, sources, folder)
    return call(bare.ingest, {"phases": phases, "threads": threads}, apart=options.apart)


if __name__ == "__main__":
    raise SystemExit(main(__doc__, run, size=SIZE))
