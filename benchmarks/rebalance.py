"""Rebalancing: what it costs ingestion, and how long it takes to come to rest after a flash crowd.

    python -m benchmarks.rebalance [--size N] [--repeats R] [--json]

First ``--size`` items are read from an event log into an empty store, with the compactor in the background and without
it, in turn. The ratio says how many times faster ingestion is without it: that is the peer, the same system that does
less. Then a flash crowd follows: two thirds as many items with titles of the same eight words, which fall on about one
in a hundred of the raw indices, as fast as they can be read, so that the leaves of those overflow and have to be split
while more keep coming.

"to idle" runs from the last record being retrievable until the compactor finds nothing left to do. At the end every
leaf has to be within its bounds, or marked, and ``verify`` has to hold. "details" has the leaves by size, in classes of
multiples of B_upp, when the last record of each phase was retrievable and when the compactor was idle.

Units: items per second; seconds. "largest leaf" is in multiples of the upper bound, taken after every batch: above
``rebalance.backpressure`` (5) the writer waits for the split. "writer's time" is the share of the phase that the
compactor had the writer, "longest change" the longest that it had it at a time.
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from benchmarks import whole
from benchmarks.apart import call
from benchmarks.load import crowd_lines, item_lines, write_log
from benchmarks.model import make_model
from benchmarks.options import Options, main, say
from benchmarks.report import Result, alternating

SIZE = 300_000
SYSTEMS = {"with rebalancing": True, "without": False}


def run(options: Options) -> Result:
    """Measure."""
    n, crowd = options.size, max(1, 2 * options.size // 3)
    result = Result("rebalance", {"items": n, "crowd": crowd, "repeats": options.repeats})
    say(f"making {n} items and a crowd of {crowd}")
    items, more = item_lines(n), crowd_lines(crowd, first=n)
    logs = [write_log(options.workdir / "items", items, []), write_log(options.workdir / "crowd", items + more, [])]
    make_model(options.workdir)
    sound, outside = True, 0
    result.details["edges"] = list(whole.EDGES[1:-1])
    for number, name in enumerate(alternating(list(SYSTEMS), options.repeats)):
        say(f"{number + 1} of {len(SYSTEMS) * options.repeats}: {name}")
        enabled = SYSTEMS[name]
        data_dir = str(options.workdir / f"data-{number}")
        phases = [
            whole.settings(options.workdir, log, rebalance={"enabled": enabled}) | {"data_dir": data_dir}
            for log in logs
        ]
        answer = call(whole.ingest, {"phases": phases, "check": enabled}, apart=options.apart)
        shutil.rmtree(data_dir)
        for what, phase in zip(("items", "crowd"), answer["phases"], strict=True):
            result.add(f"{what} {name}", "/s", phase["records"] / phase["applied_s"])
            seconds = phase["cpu_to_applied_s"] / phase["records"]
            result.add(f"processor time per item, {what} {name}", "us", seconds * 1e6)
            if enabled:
                _add(result, what, phase)
        if enabled:
            sound = sound and answer["verify"]["ok"]
            outside += answer["out_of_bounds"]
        result.details.setdefault(name, []).append(answer)
    result.add("raw indices the crowd falls on", "%", 100 * answer["phases"][1]["codes_share"])
    with_it, without = "items with rebalancing", "items without"
    result.ratio("without / with rebalancing, items/s", without, with_it)
    share = result.ratio("with / without rebalancing, items/s", with_it, without)
    crowded = result.ratio("crowd / items, with rebalancing", "crowd with rebalancing", with_it)
    result.goal("ingestion with / without rebalancing", share, "at least", 0.8)
    result.goal("crowd / quiet rate", crowded, "at least", 0.7)
    result.goal("seconds to idle after the crowd", result.median("to idle after the crowd"), "at most", 60)
    result.goal("leaves out of bounds at the end", outside, "at most", 0)
    result.goal("verify holds", int(sound), "at least", 1)
    _draw(result)
    return result


def _draw(result: Result) -> None:
    """Leaves by size after the crowd, of the last run of each system."""
    edges = [*result.details["edges"], 8.0]  # the last class is open
    (with_it, without) = (result.details[name][-1]["phases"][1] for name in SYSTEMS)
    sizes = {
        "without rebalancing": without["leaves_idle"],
        "as the crowd ends": with_it["leaves_applied"],
        "when idle": with_it["leaves_idle"],
    }
    points = {label: (edges, np.cumsum(counts) / max(1, sum(counts)) * 100) for label, counts in sizes.items()}
    axes = ("size in B_upp", "% of leaves at most that")
    result.plot("sizes", "Leaves by size after a flash crowd", axes, points, log="x", steps=True)


def _add(result: Result, what: str, phase: dict[str, Any]) -> None:
    result.add(f"to idle after the {what}", "s", phase["idle_s"])
    result.add(f"largest leaf during the {what}", "x B_upp", phase["largest"])
    result.add(f"splits during the {what}", "", phase["splits"])
    result.add(f"merges during the {what}", "", phase["merges"])
    result.add(f"members moved per item of the {what}", "", phase["moved"] / phase["records"])
    result.add(f"writer's time during the {what}", "%", 100 * phase["writer_s"] / phase["applied_s"])
    result.add(f"longest change during the {what}", "ms", phase["longest_ms"])


if __name__ == "__main__":
    raise SystemExit(main(__doc__, run, size=SIZE))
