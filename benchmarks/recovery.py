"""Recovery: from the start of the daemon's process to ready, after a clean stop and after SIGKILL.

    python -m benchmarks.recovery [--size N] [--repeats R] [--json]

A daemon (``facetstream run`` in a process of its own) follows an event log with ``--size`` items and as many
engagements until all is applied, and is stopped with SIGTERM. It is started again: "answering" is when HTTP answers,
which is after the index was loaded from the store; "ready" is when it has caught up with the log and nothing is left to
apply. Then a tenth more items are appended to the log, and the daemon is killed with SIGKILL as soon as half of them
are live, in the middle of writing; it is started once more, recovers its write-ahead log, finds its offsets and applies
the rest. At the end ``verify`` has to hold with exactly one record per item.

The peer is what one would do without a store that survives: reading the whole log again into an empty one. It is the
first start of the same run; items were never rebalanced then, which favours it.

"kernels" is what compiling takes at the first start on a machine, and reading the results at later ones; "ready" has it
in it.

Units: seconds, Python's and the libraries' imports included ("loading" is the opening of the index alone, measured in a
fresh process).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import standing, whole
from benchmarks.apart import call
from benchmarks.daemons import Daemon
from benchmarks.load import engagement_lines, item_lines, write_log
from benchmarks.model import make_model
from benchmarks.options import Options, main, say
from benchmarks.report import Result

SIZE = 1_000_000


def run(options: Options) -> Result:
    """Measure."""
    n = options.size
    more = max(2, n // 10)
    result = Result("recovery", {"items": n, "engagements": n, "appended": more, "repeats": options.repeats})
    say(f"making {n + more} items and {n} engagements")
    items, later = item_lines(n), item_lines(more, first=n)
    engagements = engagement_lines(n, n)
    make_model(options.workdir)
    sound = True
    for repeat in range(options.repeats):
        folder = options.workdir / f"repeat-{repeat}"
        folder.mkdir()
        log = write_log(folder / "log", items, engagements)
        sound = _measure(result, options, folder, log, later) and sound
    result.ratio("reading all again / ready after a clean stop", "empty store: ready", "clean stop: ready")
    result.ratio("reading all again / ready after SIGKILL", "empty store: ready", "SIGKILL: ready")
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(dir=options.workdir) as caches:
            for when in ("first start on a machine", "later starts"):
                answer = call(standing.warmed, {}, environment={"NUMBA_CACHE_DIR": caches}, apart=options.apart)
                result.add(f"kernels, {when}", "s", answer["seconds"])
    result.goal("seconds to ready after a clean stop", result.median("clean stop: ready"), "at most", 5)
    result.goal("verify holds and every item is there once", int(sound), "at least", 1)
    return result


def _measure(result: Result, options: Options, folder: Path, log: Path, later: list[bytes]) -> bool:
    data_dir, model, n = folder / "data", options.workdir / "model", options.size
    say("filling an empty store")
    with Daemon(data_dir, model, log) as daemon:
        result.add("empty store: ready", "s", daemon.ready_after())
        result.add("clean stop", "s", daemon.stop())
    config = whole.settings(options.workdir, log) | {"data_dir": str(data_dir)}
    result.add("loading", "s", call(standing.opened, {"config": config}, apart=options.apart)["seconds"])
    say("starting after a clean stop, then killing")
    with Daemon(data_dir, model, log) as daemon:
        result.add("clean stop: answering", "s", daemon.answering_after())
        result.add("clean stop: ready", "s", daemon.ready_after())
        with (log / "items.jsonl").open("ab") as file:
            file.write(b"\n".join(later) + b"\n")
        daemon.until(lambda: daemon.items_live() >= n + len(later) // 2)
        daemon.kill()
    say("starting after SIGKILL")
    with Daemon(data_dir, model, log) as daemon:
        result.add("SIGKILL: answering", "s", daemon.answering_after())
        result.add("SIGKILL: ready", "s", daemon.ready_after())
        daemon.ask("/compact", {})
        daemon.stop()
    found = call(standing.opened, {"config": config, "check": True}, apart=options.apart)
    result.details.setdefault("verify", []).append(found["verify"])
    return bool(found["verify"]["ok"]) and found["items"] == n + len(later) and found["engagements"] == n


if __name__ == "__main__":
    raise SystemExit(main(__doc__, run, size=SIZE))
