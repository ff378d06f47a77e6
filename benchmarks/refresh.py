"""Refresh: from asking for the next model to requests being answered with it, while events keep coming.

    python -m benchmarks.refresh [--size N] [--rate R] [--steps S] [--repeats R] [--json]

A first model is fitted to ``--size`` items and as many engagements (``--first-steps`` steps, not part of the figures).
A daemon with ``model.follow`` applies the same log. Then half as many engagements more are appended, and while
``--rate`` new items a second keep coming, ``facetstream trainer --once`` is started in a process of its own: it reads
the log, makes ``--steps`` steps on what is new, publishes the next artifact and ends. The daemon notices it, encodes
all live items anew beside the old generation, catches up and switches. "training" is the trainer's process from start
to end, imports and reading the log included; "switch" is from its end to ``/status`` naming the new generation, of
which "encoding, filing, balancing" is what the process beside the daemon took, without its start.

The peer is what one would do without it: ``facetstream generation create``, which reads the whole log into the new
generation, with the same model, beside the same daemon, while nothing else happens.

*Freshness* is from appending an item to the log to ``/status`` saying that it is applied, polled every 20 ms: once
before the refresh, for ``--calm`` seconds, and once from the trainer's start to the switch. At the end ``verify`` has
to hold.

Units: seconds; milliseconds of freshness.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import orjson

from benchmarks.daemons import Daemon
from benchmarks.load import engagement_lines, item_lines, write_log
from benchmarks.options import Options, main, say
from benchmarks.report import Result
from schemas.config import Config
from streamer.generations import current_generation, open_for_reading
from streamer.refreshing import refreshed

SIZE: Final = 50_000
EXTRA: Final = {
    "rate": (500.0, "items appended a second meanwhile"),
    "steps": (15.0, "steps of the refresh"),
    "first-steps": (40.0, "steps of the first model"),
    "calm": (10.0, "seconds of freshness measured before"),
}
_POLL_S: Final = 0.02
_WORDS: Final = "settings.toml"
_SETTINGS: Final = """
codewords = 64
steps = {first}
[refresh]
steps = {steps}
span_s = {span}
"""


def run(options: Options) -> Result:
    """Measure."""
    n, extra = options.size, options.extra
    more = max(2, n // 2)
    settings = {"items": n, "engagements": n, "then": more, "rate": extra["rate"], "steps": extra["steps"]}
    result = Result("refresh", settings | {"repeats": options.repeats})
    say(f"making {n} items and {n + more} engagements")
    items, engagements = item_lines(n), engagement_lines(n + more, n)
    sound = True
    for repeat in range(options.repeats):
        folder = options.workdir / f"repeat-{repeat}"
        folder.mkdir()
        log = write_log(folder / "log", items, engagements[:n])
        told = {"first": int(extra["first-steps"]), "steps": int(extra["steps"]), "span": more + 1}
        (folder / _WORDS).write_text(_SETTINGS.format(**told))
        sound = _measure(result, options, folder, log, engagements[n:]) and sound
    result.ratio("reading all again / switch", "reading all again", "switch")
    result.ratio("freshness p99, during / before", "freshness during it, p99", "freshness before, p99")
    result.goal("seconds, training included", result.median("training and switch"), "at most", 60)
    result.goal("verify holds", int(sound), "at least", 1)
    return result


def _measure(result: Result, options: Options, folder: Path, log: Path, later: list[bytes]) -> bool:
    models, data_dir = folder / "models", folder / "data"
    say("fitting the first model")
    _train(folder, log)
    with Daemon(data_dir, models / "facetstream-0001", log, FACETSTREAM_MODEL__FOLLOW=str(models)) as daemon:
        daemon.ready_after()
        _append(log / "engagements.jsonl", later)
        daemon.until(lambda: _applied(daemon, "engagements-0") >= options.size + len(later))
        say("freshness before")
        with Feeding(log, daemon, options.size, options.extra["rate"]) as feeding:
            time.sleep(options.extra["calm"])
        _fresh(result, "before", feeding)
        before = current_generation(data_dir)
        say("training and refreshing")
        with Feeding(log, daemon, feeding.next, options.extra["rate"]) as feeding:
            began = time.monotonic()
            _train(folder, log)
            trained = time.monotonic()
            daemon.until(lambda: _status(daemon).get("generation", before) != before)
            switched = time.monotonic()
        _fresh(result, "during it", feeding)
        result.add("training", "s", trained - began)
        result.add("switch", "s", switched - trained)
        result.add("training and switch", "s", switched - began)
        say("reading all again")
        began = time.monotonic()
        _command(data_dir, "generation", "create", "--events", str(log), "--model", str(models / "facetstream-0001"))
        result.add("reading all again", "s", time.monotonic() - began)
        daemon.ask("/compact", {})
        daemon.stop()
    with open_for_reading(Config(data_dir=data_dir)) as stores:
        done = refreshed(stores.values())
    assert done is not None, "the generation in use is no refreshed one"
    result.add("encoding, filing, balancing", "s", done.seconds)
    result.details.setdefault("drift", []).append(done.model_dump(mode="json"))
    return bool(orjson.loads(_command(data_dir, "verify", "--json"))["ok"])


def _fresh(result: Result, when: str, feeding: Feeding) -> None:
    for percentile in (50, 99):
        result.add(f"freshness {when}, p{percentile}", "ms", float(np.percentile(feeding.latencies(), percentile)))


class Feeding:
    """Appends items to the log at a steady rate, and sees when they are applied.

    Args:
        log: the event log.
        daemon: that follows it.
        first: number of items that are there.
        rate: items a second.

    Attributes:
        next: number of the next item.
    """

    def __init__(self, log: Path, daemon: Daemon, first: int, rate: float) -> None:
        self.next = first
        self._first = first
        self._path, self._daemon, self._rate = log / "items.jsonl", daemon, rate
        self._sent: list[float] = []
        self._seen: list[tuple[float, int]] = []
        self._over, self._fed = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._feed), threading.Thread(target=self._watch)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def latencies(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(n,) milliseconds of each item."""
        at, count = np.array(self._seen).T
        first = np.searchsorted(count, self._first + np.arange(len(self._sent)), side="right")
        return np.asarray((at[first] - np.array(self._sent)) * 1_000)

    def _feed(self) -> None:
        began = time.monotonic()
        while not self._over.wait(1 / 50):
            due = int((time.monotonic() - began) * self._rate) - len(self._sent)
            if due > 0:
                _append(self._path, item_lines(due, first=self.next))
                self._sent += [time.monotonic()] * due
                self.next += due
        self._fed.set()

    def _watch(self) -> None:
        while not self._fed.is_set() or not self._seen or self._seen[-1][1] < self.next:
            applied = _applied(self._daemon, "items-0")
            latest = self._seen[-1][1] if self._seen else 0
            self._seen.append((time.monotonic(), max(latest, applied)))
            time.sleep(_POLL_S)


def _append(path: Path, lines: list[bytes]) -> None:
    with path.open("ab") as file:
        file.write(b"\n".join(lines) + b"\n")


def _status(daemon: Daemon) -> dict[str, Any]:
    return daemon.ask("/status") or {}


def _applied(daemon: Daemon, partition: str) -> int:
    return int(_status(daemon).get("offsets", {}).get(partition, 0))


def _train(folder: Path, log: Path) -> None:
    _run("trainer", "--once", "--events", str(log), "--models", str(folder / "models"), "--settings", folder / _WORDS)


def _command(data_dir: Path, *arguments: str) -> bytes:
    return _run(*arguments, "--data-dir", data_dir)


def _run(*arguments: str | Path) -> bytes:
    command = [sys.executable, "-m", "streamer.cli", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


if __name__ == "__main__":
    raise SystemExit(main(__doc__, run, size=SIZE, repeats=1, extra=EXTRA))
