"""Snapshots: publishing, following, and answering from them.

    python -m benchmarks.snapshots [--size N] [--changes C] [--repeats R] [--json]

An index of ``--size`` items (F=3, d=64, random embeddings and codes, vectors given: no encoder) is published in full
three times. Then ``--changes`` changes at a time, half of them new items and half engagements, are applied and
published as deltas, forty times, while a reader in the same process follows. "Held" is how long the writer cannot
change the live view meanwhile. Requests of five triggers, their own leaves, many in one call, are then answered from
the snapshot and from the live view in turn.

The peer of publishing is the least that would do: as many bytes written to the same disk and synced, and hashed.

Units: milliseconds, unless given.
"""

from __future__ import annotations

from benchmarks import published
from benchmarks.apart import call
from benchmarks.options import Options, main, say
from benchmarks.report import Result

SIZE = 300_000
_ALIKE = "requests a second: from a snapshot / from the live view"
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
    alike = result.ratio(_ALIKE, "requests a second: snapshot", "requests a second: live view")
    result.goal(_ALIKE, alike, "at least", 0.9)
    result.goal("delta p99 ms, published and shown", published.worst(result), "at most", 500)
    return result


if __name__ == "__main__":
    extra = {"changes": (CHANGES, "changes in one delta")}
    raise SystemExit(main(__doc__, run, size=SIZE, repeats=1, extra=extra))
