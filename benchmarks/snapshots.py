"""Snapshots: publishing, following, and answering from them.

    python -m benchmarks.snapshots [--size N] [--changes C] [--repeats R] [--json]

An index of ``--size`` items (F=3, d=64, random embeddings and codes, vectors given: no encoder) is published in full
three times. Then ``--changes`` changes at a time, half of them new items and half engagements, are applied and
published as deltas, forty times, while a reader in the same process follows. "Held" is how long the writer stands still
for it. The reader's answers to 200 requests of five triggers are timed against those of the live view.

The peer of publishing is the least that would do: as many bytes written to the same disk and synced, and hashed.

Units: milliseconds, unless given.
"""

from __future__ import annotations

from benchmarks import published
from benchmarks.apart import call
from benchmarks.options import Options, main, say
from benchmarks.report import Result

SIZE = 300_000
CHANGES = 2_000


def run(options: Options) -> Result:
    """Measure."""
    n, changes = options.size, int(options.extra["changes"])
    result = Result("snapshots", {"items": n, "changes": changes, "repeats": options.repeats})
    for repeat in range(options.repeats):
        say(f"{repeat + 1} of {options.repeats}: publishing {n} items, then {changes} changes at a time")
        folder = options.workdir / f"{repeat}"
        found = call(published.measure, {"folder": str(folder), "items": n, "changes": changes}, apart=options.apart)
        for name, (unit, values) in found["measures"].items():
            result.add(name, unit, *values)
    result.ratio("full snapshot / bytes written and hashed", "full snapshot", "peer: its bytes written and hashed")
    result.ratio("request from a snapshot / from the live view", "request: snapshot, p50", "request: live view, p50")
    result.goal("delta p99 ms, published and shown", published.worst(result), "at most", 500)
    return result


if __name__ == "__main__":
    extra = {"changes": (CHANGES, "changes in one delta")}
    raise SystemExit(main(__doc__, run, size=SIZE, repeats=1, extra=extra))
