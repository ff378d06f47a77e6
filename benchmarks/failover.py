"""Failover and replay: a shard that moves to another daemon, and a topic that is read again into a full index.

    python -m benchmarks.failover [--size N] [--repeats R] [--json]

One topic of one partition holds ``--size`` items and as many engagements; a daemon applies them and takes a checkpoint
into a directory that daemons share. Then, in turn: the daemon is killed and another one with an empty data directory
takes over, which restores the checkpoint ("from a checkpoint"); that one is killed and the first takes over, whose
directory is still there ("directory there"). "Ready" is when the new owner has caught up and answers, counted from the
moment at which the group gives it the shard; before that moment the group waits for the dead member's session to time
out (``kafka.session_timeout_s``, 6 s here), which "detected" shows. The peer is a daemon that has neither and reads the
topic from its beginning.

Then the daemon is stopped, and ``facetstream replay --from earliest`` reads everything again into the index that has
it: records per second, and whether anything changed. At the end ``verify`` has to hold.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from benchmarks.broker import broker, fresh_topics, produce
from benchmarks.daemons import ask
from benchmarks.load import engagement_lines, item_lines, write_log
from benchmarks.model import make_model
from benchmarks.options import Options, main, say
from benchmarks.report import Result
from indexer.logical_state import LogicalState, differences, logical_state, merge
from schemas.config import Config
from streamer.generations import open_for_reading

SIZE = 300_000
_SESSION_S = 6


class _Member:
    """A daemon of the group, on a data directory of its own."""

    def __init__(self, data_dir: Path, settings: Path) -> None:
        self._data_dir = data_dir
        self._log = data_dir.with_suffix(f".{time.monotonic_ns()}.log")
        self.started = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streamer.cli", "run", "--config", str(settings), "--data-dir", str(data_dir)],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=os.environ | {"FACETSTREAM_LOG__FORMAT": "json"},
            )

    def at(self, event: str) -> float:
        """Wall-clock seconds at which it first logged an event; waits for it."""
        while True:
            for line in self._log.read_bytes().splitlines():
                if f'"event":"{event}"'.encode() in line:
                    return _wall(orjson.loads(line)["timestamp"])
            self.check()
            time.sleep(0.01)

    def ready(self, lag: int = 0) -> float:
        """Wall-clock seconds at which it has the shard and has caught up; waits for it."""
        while True:
            try:
                state = orjson.loads((self._data_dir / "daemon.json").read_bytes())
                found = ask(state["url"] + "/readyz") if state["pid"] == self._process.pid else {}
                if found.get("caught_up") and found.get("shards") and found["lag"] <= lag:
                    return time.time()
            except (OSError, ValueError):
                pass
            self.check()
            time.sleep(0.01)

    def ask(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        """What it answers."""
        return ask(orjson.loads((self._data_dir / "daemon.json").read_bytes())["url"] + path, document)

    def check(self) -> None:
        """Raise if it has ended."""
        if self._process.poll() is not None:
            raise SystemExit(
                f"the daemon ended with status {self._process.returncode}: {self._log.read_text()[-2000:]}"
            )

    def end(self, number: signal.Signals) -> None:
        """Send a signal and wait."""
        self._process.send_signal(number)
        self._process.wait()


def run(options: Options) -> Result:
    """Measure."""
    n = options.size
    result = Result(
        "failover", {"items": n, "engagements": n, "repeats": options.repeats, "session_timeout_s": _SESSION_S}
    )
    with broker(wanted=options.broker) as (bootstrap, why_not):
        if bootstrap is None:
            result.skip("all", why_not)
            return result
        say(f"producing {n} items and {n} engagements")
        make_model(options.workdir)
        kafka = fresh_topics(bootstrap, 1) | {"session_timeout_s": _SESSION_S}
        produce(write_log(options.workdir / "log", item_lines(n), engagement_lines(n, n)), kafka)
        settings = options.workdir / "facetstream.toml"
        settings.write_text(_toml(options.workdir, kafka))
        same = True
        for repeat in range(options.repeats):
            same = _measure(result, options.workdir, settings, repeat) and same
    result.ratio("reading all again / ready from a checkpoint", "empty: ready", "from a checkpoint: ready")
    result.goal("ready from a checkpoint, s", result.median("from a checkpoint: ready"), "at most", 10)
    result.goal("ready, directory there, s", result.median("directory there: ready"), "at most", 3)
    result.goal("replay into a full index, records/s", result.median("replay: records"), "at least", 80_000)
    result.goal("a replay changes nothing, verify holds", int(same), "at least", 1)
    return result


def _measure(result: Result, workdir: Path, settings: Path, repeat: int) -> bool:
    first, second = workdir / f"first-{repeat}", workdir / f"second-{repeat}"
    say("filling an empty store")
    owner = _Member(first, settings)
    result.add("empty: ready", "s", owner.ready() - owner.at("shards_assigned"))
    owner.ask("/compact", {})
    began = time.time()
    owner.ask("/checkpoint", {})
    result.add("checkpoint taken", "s", time.time() - began)
    for name, folder in (("from a checkpoint", second), ("directory there", first)):
        say(f"killing the owner: {name}")
        heir = _Member(folder, settings)
        heir.at("started")
        time.sleep(2)  # it has joined the group by then, without a shard
        killed = time.time()
        owner.end(signal.SIGKILL)
        assigned = heir.at("shards_assigned")
        result.add(f"{name}: detected", "s", assigned - killed)
        result.add(f"{name}: ready", "s", heir.ready() - assigned)
        owner = heir
    owner.end(signal.SIGTERM)
    say("replaying everything")
    config = Config.model_validate(_document(settings) | {"data_dir": str(first)})
    before = _state(config)
    told = _command(settings, first, "replay", "--from", "earliest", "--json")
    result.add("replay: records", "/s", told["records_per_second"])
    result.details.setdefault("replay", []).append(told)
    unchanged = not differences(before, _state(config)) and told["applied"] == 0
    return unchanged and bool(_command(settings, first, "verify", "--json")["ok"])


def _command(settings: Path, data_dir: Path, *command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "streamer.cli", *command, "--config", str(settings), "--data-dir", str(data_dir)],
        stdout=subprocess.PIPE,
        check=False,
    )
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def _state(config: Config) -> LogicalState:
    with open_for_reading(config) as stores:
        return merge([logical_state(store) for store in stores.values()])


def _document(settings: Path) -> dict[str, Any]:

    return tomllib.loads(settings.read_text())


def _toml(workdir: Path, kafka: dict[str, Any]) -> str:
    lines = ["[kafka]", *(f"{name} = {orjson.dumps(value).decode()}" for name, value in kafka.items())]
    lines += ["[model]", f'path = "{workdir}/model"', "[http]", "port = 0"]
    return "\n".join([*lines, "[checkpoints]", f'url = "{workdir}/checkpoints"', ""])


def _wall(timestamp: str) -> float:

    return datetime.fromisoformat(timestamp).timestamp()


if __name__ == "__main__":
    raise SystemExit(main(__doc__, run, size=SIZE))
