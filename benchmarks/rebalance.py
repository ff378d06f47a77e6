"""Rebalancing: what it costs ingestion, and how long it takes to come to rest after a flash crowd.

    python -m benchmarks.rebalance [--size N] [--repeats R] [--json]

First ``--size`` items are read from an event log into an empty store, with the compactor in the background and without
it, in turn. The ratio says how many times faster ingestion is without it: that is the peer, the same system that does
less. Then, on the store with it, a flash crowd follows: an eighth as many items with titles of the same eight words,
which fall on about one in a hundred of the raw indices, so that the leaves of those overflow and have to be split while
more keep coming.

"to idle" runs from the last record being retrievable until the compactor finds nothing left to do. At the end every
leaf has to be within its bounds, or marked, and ``verify`` has to hold; both are reported as goals.

Units: items per second; seconds. "largest leaf" is in multiples of the upper bound, taken after every batch: above
``rebalance.backpressure`` (5) the writer waits for the split.
"""

from __future__ import annotations

import shutil

from benchmarks import whole
from benchmarks.apart import call
from benchmarks.load import crowd_lines, item_lines, write_log
from benchmarks.model import make_model
from benchmarks.options import Options, main, say
from benchmarks.report import Result, alternating

SIZE = 300_000
CROWD = 1.5
SYSTEMS = {"with rebalancing": True, "without": False}


def run(options: Options) -> Result:
    """Measure."""
    n, crowd = options.size, max(1, int(options.size / CROWD))
    result = Result("rebalance", {"items": n, "crowd": crowd, "repeats": options.repeats})
    say(f"making {n} items and a crowd of {crowd}")
    items, more = item_lines(n), crowd_lines(crowd, first=n)
    logs = [write_log(options.workdir / "items", items, []), write_log(options.workdir / "crowd", items + more, [])]
    make_model(options.workdir)
    sound, outside = True, 0
    for number, name in enumerate(alternating(list(SYSTEMS), options.repeats)):
        say(f"{number + 1} of {len(SYSTEMS) * options.repeats}: {name}")
        enabled = SYSTEMS[name]
        data_dir = str(options.workdir / f"data-{number}")
        phases = [
            whole.settings(options.workdir, log, rebalance={"enabled": enabled}) | {"data_dir": data_dir}
            for log in (logs if enabled else logs[:1])
        ]
        answer = call(whole.ingest, {"phases": phases, "check": enabled}, apart=options.apart)
        shutil.rmtree(data_dir)
        first = answer["phases"][0]
        result.add(f"items {name}", "/s", first["records"] / first["applied_s"])
        result.add(f"processor time per item {name}", "us", first["cpu_to_applied_s"] / first["records"] * 1e6)
        if not enabled:
            continue
        result.add("to idle after the items", "s", first["idle_s"])
        last = answer["phases"][1]
        result.add("crowd", "/s", last["records"] / last["applied_s"])
        result.add("to idle after the crowd", "s", last["idle_s"])
        result.add("largest leaf during the crowd", "x B_upp", last["largest"])
        result.add("splits during the crowd", "", last["splits"])
        result.add("raw indices the crowd falls on", "%", 100 * last["codes_share"])
        sound = sound and answer["verify"]["ok"]
        outside += answer["out_of_bounds"]
        result.details.setdefault("with rebalancing", []).append(answer)
    result.ratio("without / with rebalancing, items/s", "items without", "items with rebalancing")
    result.ratio("crowd / items, items/s", "crowd", "items with rebalancing")
    result.goal("leaves out of bounds at the end", outside, "at most", 0)
    result.goal("verify holds", int(sound), "at least", 1)
    return result


if __name__ == "__main__":
    raise SystemExit(main(__doc__, run, size=SIZE))
