"""Daemons as processes over topics of a real broker, with a data directory each, for tests of many of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import orjson

from indexer.logical_state import LogicalState, logical_state, merge
from indexer.store import Store, store_path
from schemas.settings import load_settings
from streamer.daemon import run_daemon
from streamer.dead_letters import read_file, read_topic
from streamer.generations import current_generation, dead_letter_files, load_model, local_shards
from streamer.kafka_clients import open_producer
from streamer.verification import verify_shards
from tests.builders import random_log, tiny_model
from tests.kafka.broker import create_topics
from tests.kafka.records import produce

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from schemas.config import Config, KafkaConfig

DEADLINE_S: Final = 120.0
_HERE: Final = Path(__file__).parents[1]
_SETTINGS: Final = """
data_dir = "{data_dir}"
[source]
{source}
align_wait_s = 60
max_poll_records = 256
[kafka]
bootstrap_servers = "{kafka.bootstrap_servers}"
items_topic = "{kafka.items_topic}"
engagements_topic = "{kafka.engagements_topic}"
dead_letters_topic = "{letters}"
group_id = "{group}"
session_timeout_s = {session_s}
request_timeout_s = 20
{membership}
[model]
path = "{model}"
[writer]
batch_records = 32
group_commit_ms = 10
[pending]
max_age_s = 1000000
[rebalance]
low = 4
high = 32
interval_ms = 1
merge_interval_s = 0
[retrieval]
engagement_weight = 0.0
[checkpoints]
url = "{checkpoints}"
interval_s = {interval_s}
keep = 2
[http]
port = 0
{more}
"""


class Process:
    """One ``facetstream`` command in a process of its own; ``killed_at`` is epoch seconds."""

    def __init__(self, log: Path, *arguments: str | Path, **environment: str) -> None:
        self.log = log
        self.killed_at: float | None = None
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FACETSTREAM_")}
        with log.open("wb") as stderr, log.with_suffix(".out").open("wb") as stdout:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamer.cli", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=kept | {"OMP_NUM_THREADS": "1"} | environment,
                cwd=_HERE,
            )

    def said(self) -> str:
        """All of stderr."""
        return self.log.read_text()

    def printed(self) -> str:
        """All of stdout."""
        return self.log.with_suffix(".out").read_text()

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What was logged under these names, in order."""
        found = []
        for line in self.said().splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                event = json.loads(line)
                if event["event"] in names:
                    found.append(event)
        return found

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; the process must not end before."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.said()}"
            assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s for {what}:\n{self.said()}"
            time.sleep(0.05)

    def until_logged(self, name: str, times: int = 1) -> None:
        """Wait for a log event."""
        self.until(lambda: len(self.events(name)) >= times, name)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def stopped(self) -> bool:
        """Whether it stands still, by a signal."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

    def end(self, code: int | None = 0) -> str:
        """Wait for the end; returns stderr. ``code`` is what it must exit with, None takes any."""
        try:
            found = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"did not end:\n{self.said()}") from error
        assert code is None or found == code, (found, self.said())
        assert "Traceback" not in self.said(), self.said()
        return self.said()

    def terminate(self) -> None:
        """Ask for a graceful end and wait for it."""
        self.signal(signal.SIGTERM)
        self.end()

    def kill(self) -> None:
        """SIGKILL; nothing if it ended already."""
        if self.process.poll() is None:
            self.killed_at = time.time()
            self.process.kill()
        self.process.wait(DEADLINE_S)


class Daemon(Process):
    """``facetstream run``."""

    def __init__(self, log: Path, config: Path, *arguments: str, **environment: str) -> None:
        super().__init__(log, "run", "--config", config, *arguments, **environment)

    @property
    def url(self) -> str:
        """Where it answers, once it has started."""
        return str(self.events("started")[0]["http"])

    def ask(self, path: str, document: Any = None) -> tuple[int, Any]:
        """GET, or POST of a document; status and reply."""
        body = None if document is None else orjson.dumps(document)
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body), timeout=60) as answer:
                return answer.status, orjson.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, orjson.loads(error.read())

    def ask_text(self, path: str) -> str:
        """GET of what is no JSON."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return str(answer.read(), "utf-8")

    def status(self) -> dict[str, Any]:
        """``/status``."""
        code, document = self.ask("/status")
        assert code == 200, document
        return dict(document)

    def shards(self) -> set[int]:
        """Those it owns and has opened."""
        return {row["shard"] for row in self.status()["shards"] if "offsets" in row}

    def until_ready(self) -> Self:
        """Wait until it has started and caught up."""
        self.until_logged("started")
        self.until(lambda: self.ask("/readyz")[0] == 200, "readiness")
        return self


@dataclass
class World:
    """Topics or an event log, a model, and the daemons over them. Everything it started ends with it.

    Attributes:
        log: the event log, which :meth:`send` adds to; None: the topics are the source.
        sent: records so far.
    """

    folder: Path
    kafka: KafkaConfig
    partitions: int
    log: Path | None = None
    started: list[tuple[str, Process]] = field(default_factory=list)
    sent: int = 0

    def __enter__(self) -> Self:
        tiny_model().save(self.folder / "model")
        return self

    def __exit__(self, *_: object) -> None:
        for _, process in self.started:
            process.kill()

    def settings(
        self,
        name: str,
        *,
        group: str = "",
        letters: str = "",
        together: bool = True,
        interval_s: float = 0,
        session_s: float = 4,
        model: Path | None = None,
        checkpoints: Path | None = None,
        more: str = "",
    ) -> Path:
        """A configuration file of a daemon with data directory ``name``; ``together``: in a group with others."""
        path = self.folder / f"{name}.toml"
        path.write_text(
            _SETTINGS.format(
                data_dir=self.data_dir(name),
                source='kind = "kafka"' if self.log is None else f'kind = "eventlog"\npath = "{self.log}"',
                kafka=self.kafka,
                letters=letters or self.kafka.dead_letters_topic,
                group=group or self.kafka.group_id,
                session_s=session_s,
                membership="" if together else 'membership = "all"',
                model=model or self.folder / "model",
                checkpoints=checkpoints or self.folder / "checkpoints",
                interval_s=interval_s,
                more=more,
            )
        )
        return path

    def data_dir(self, name: str) -> Path:
        """Of a daemon."""
        return self.folder / name

    def config(self, name: str) -> Config:
        """Of a daemon whose settings were made."""
        return load_settings(self.folder / f"{name}.toml", environment={}).config

    def run(self, name: str, *arguments: str, **environment: str) -> Daemon:
        """Start a daemon whose settings were made."""
        log = self.folder / f"{name}-{len(self.started)}.log"
        daemon = Daemon(log, self.folder / f"{name}.toml", *arguments, **environment)
        self.started.append((name, daemon))
        return daemon

    def begin(self, name: str, *arguments: str | Path, **environment: str) -> Process:
        """Start another command on the data directory of a daemon."""
        log = self.folder / f"{name}-{arguments[0]}-{len(self.started)}.log"
        command = Process(log, *arguments, "--config", self.folder / f"{name}.toml", **environment)
        self.started.append(("", command))
        return command

    def command(self, name: str, *arguments: str | Path, code: int = 0) -> str:
        """Run another command to its end; returns what it printed, or said when it failed."""
        process = self.begin(name, *arguments)
        said = process.end(code)
        return process.printed() if code == 0 else said

    def reply(self, name: str, *arguments: str | Path) -> Any:
        """As :meth:`command` with ``--json``."""
        return json.loads(self.command(name, *arguments, "--json"))

    def send(self, lines: Mapping[str, list[bytes]]) -> None:
        """Produce lines as :func:`tests.builders.random_log` makes them."""
        self.sent += sum(map(len, lines.values()))
        if self.log is not None:
            self.log.mkdir(exist_ok=True)
            for name, part in lines.items():
                with (self.log / f"{name}.jsonl").open("ab") as file:
                    file.write(b"".join(line + b"\n" for line in part))
            return
        topics = {"items": self.kafka.items_topic, "engagements": self.kafka.engagements_topic}
        for stream, topic in topics.items():
            rows = [
                (int(name[-5:]), None, line) for name, part in lines.items() if name.startswith(stream) for line in part
            ]
            produce(self.kafka, topic, rows)

    def send_slowly(self, seed: int, events: int, going_on: Callable[[], bool], step: int = 12) -> None:
        """Produce a random log a little at a time until ``going_on`` says no, then the rest at once."""
        lines = random_log(seed, events, self.partitions)
        topics = {"items": self.kafka.items_topic, "engagements": self.kafka.engagements_topic}
        left = {name: list(reversed(part)) for name, part in lines.items()}
        producer = open_producer(self.kafka, linger_ms=5)
        try:
            while any(left.values()):
                for name, part in left.items():
                    for _ in range(max(1, step * len(lines[name]) // events)):
                        if part:
                            producer.send(topics[name[:-6]], part.pop(), partition=int(name[-5:]))
                producer.flush(60)
                if going_on():
                    time.sleep(0.05)
        finally:
            producer.close(timeout=5)
        self.sent += events

    def until_applied(self, *daemons: Daemon) -> None:
        """Wait until the daemons together own every shard and stand at the end of every partition."""

        def there() -> bool:
            rows = [daemon.status() for daemon in daemons]
            places = {name: at for row in rows for name, at in row["offsets"].items()}
            owned = sorted(shard["shard"] for row in rows for shard in row["shards"])
            return owned == list(range(self.partitions)) and sum(places.values()) == self.sent

        daemons[0].until(there, f"{self.sent} records applied")

    def undisturbed(self, model: str = "model") -> tuple[LogicalState, set[tuple[str, int, int]]]:
        """What one daemon alone makes of all there is now: its state, and its dead letters."""
        name = f"calm-{uuid.uuid4().hex[:8]}"
        topic = f"{self.kafka.dead_letters_topic}-{name}"
        if self.log is None:
            create_topics(self.kafka.bootstrap_servers, {topic: 1}, retention_ms="-1")
        none = self.folder / "none"
        self.settings(name, group=topic, letters=topic, checkpoints=none, model=self.folder / model)
        run_daemon(self.config(name), to_end=True)
        letters = self.letters(name)
        assert set(letters.values()) <= {1}
        return self.state(name), set(letters)

    def letters(self, name: str) -> Counter[tuple[str, int, int]]:
        """(topic, partition, offset) -> how often its dead letter is there, over all shards."""
        config = self.config(name)
        found = (
            read_topic(config.kafka)
            if self.log is None
            else chain.from_iterable(map(read_file, dead_letter_files(config.data_dir)))
        )
        return Counter((letter.topic, letter.partition, letter.offset) for letter in found)

    def state(self, *names: str, generation: str | None = None) -> LogicalState:
        """The union of the shards that these data directories own; each must have one owner, and be sound."""
        owners: dict[int, str] = {}
        states: dict[int, LogicalState] = {}
        for name in names:
            config = self.config(name)
            chosen = generation or current_generation(config.data_dir)
            with ExitStack() as stack:
                stores = {
                    shard: stack.enter_context(Store.open(store_path(config.data_dir, chosen, shard)))
                    for shard in local_shards(config.data_dir, chosen)
                }
                reply = verify_shards(stores, load_model(config, chosen), allow_unbalanced=True)
                assert reply.ok, reply.violations
                for shard, store in stores.items():
                    assert shard not in owners, f"shard {shard} is in {owners[shard]} and in {name}"
                    owners[shard], states[shard] = name, logical_state(store)
        assert sorted(owners) == list(range(self.partitions)), owners
        return merge(states[shard] for shard in sorted(states))


def spans(daemons: Iterable[Process]) -> dict[int, list[tuple[float, float]]]:
    """Shard -> (opened, closed) by the logs, epoch seconds; of a daemon that was killed, closed by that."""
    found: dict[int, list[tuple[float, float]]] = {}
    for daemon in daemons:
        opened: dict[int, float] = {}
        for event in daemon.events("shard_opened", "shard_closed"):
            at = datetime.fromisoformat(event["timestamp"]).timestamp()
            if event["event"] == "shard_opened":
                opened[event["shard"]] = at
            else:
                found.setdefault(event["shard"], []).append((opened.pop(event["shard"]), at))
        for shard, at in opened.items():
            assert daemon.killed_at is not None, f"shard {shard} was never closed:\n{daemon.said()}"
            found.setdefault(shard, []).append((at, daemon.killed_at))
    return found


def overlaps(found: Mapping[int, list[tuple[float, float]]]) -> list[tuple[int, Any, Any]]:
    """Where two had a shard open at once."""
    return [
        (shard, before, after)
        for shard, rows in found.items()
        for before, after in pairwise(sorted(rows))
        if after[0] < before[1]
    ]
