"""One index under fire: topics, a data directory, the daemon as a process, and an undisturbed index to compare with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from indexer.logical_state import LogicalState, differences, logical_state, merge
from indexer.store import store_path
from schemas.config import Config
from schemas.errors import DependencyError
from schemas.settings import load_settings
from streamer.asking import ask_daemon
from streamer.daemon import run_daemon
from streamer.dead_letters import read_topic
from streamer.generations import current_generation, load_model, local_shards, open_for_reading
from streamer.refreshing import unfinished_generations
from streamer.verification import verify_shards
from tests.builders import tiny_model
from tests.chaos.feed import Feed
from tests.kafka.broker import create_topics

PARTITIONS: Final = 2
DEADLINE_S: Final = 180.0
_HERE: Final = Path(__file__).parents[2]
_SETTINGS: Final = """
data_dir = "{folder}/{name}"
[source]
align_wait_s = 60
max_poll_records = 256
[kafka]
bootstrap_servers = "{bootstrap}"
items_topic = "{run}-items"
engagements_topic = "{run}-engagements"
dead_letters_topic = "{run}-deadletters-{name}"
group_id = "{run}-{name}"
session_timeout_s = 10
request_timeout_s = 20
[model]
path = "{folder}/model"
[writer]
batch_records = 32
group_commit_ms = 10
[pending]
max_age_s = 1500
max_count = 60
[dedupe]
enabled = true
window_s = 1200
max_count = 4000
[rebalance]
low = 4
high = 32
interval_ms = 1
merge_interval_s = 0.05
step_items = 16
reassign = true
[checkpoints]
keep = 2
[http]
port = 0
"""


class ChaosError(AssertionError):
    """The daemon did what no fault excuses: it hung, or ended with an error of its own."""


@dataclass
class Verdict:
    """What a comparison found.

    Attributes:
        lost: facts that the undisturbed index has, and this one not.
        duplicated: facts that this one has, and the undisturbed index not, or more often.
        different: facts that both have, with other values.
        violations: of the invariants.
    """

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not (self.lost or self.duplicated or self.different or self.violations)


class Process:
    """A ``facetstream`` command as a process of its own."""

    def __init__(self, log: Path, command: list[str], **environment: str) -> None:
        self.log = log
        self.began = time.monotonic()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FACETSTREAM_")}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamer.cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=clean | {"OMP_NUM_THREADS": "1"} | environment,
                cwd=_HERE,
            )

    def said(self) -> str:
        """Everything it logged."""
        return self.log.read_text(errors="replace")

    def count(self, event: str) -> int:
        """How often it logged an event."""
        return self.said().count(f'"event":"{event}"')

    def until(self, condition: Callable[[], bool], what: str) -> bool:
        """Wait for a condition; False if the process ends first."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if self.process.poll() is not None:
                return condition()
            if time.monotonic() > deadline:
                raise ChaosError(f"waited {DEADLINE_S:g} s for {what}:\n{self.said()[-3_000:]}")
            time.sleep(0.01)
        return True

    def end(self) -> int:
        """Its exit status, once it has ended."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise ChaosError(f"did not end within {DEADLINE_S:g} s:\n{self.said()[-3_000:]}") from None

    def kill(self) -> None:
        """SIGKILL, whatever it does."""
        self.process.kill()
        self.process.wait()


class Rig:
    """An index under fire.

    Args:
        folder: scratch.
        bootstrap: a real broker.
        run: prefix of topics and groups.
        seed: of the events.
    """

    def __init__(self, folder: Path, bootstrap: str, run: str, seed: int) -> None:
        self.folder = folder
        tiny_model().save(folder / "model")
        tiny_model(half_lives_s=(3_600,)).save(folder / "twin")
        names = {"name": "rough", "folder": folder, "bootstrap": bootstrap, "run": run}
        self.file, self.calm_file = folder / "rough.toml", folder / "calm.toml"
        self.file.write_text(_SETTINGS.format(**names))
        self.calm_file.write_text(_SETTINGS.format(**names | {"name": "calm"}))
        self.config: Config = load_settings(self.file, environment={}).config
        self.calm: Config = load_settings(self.calm_file, environment={}).config
        kafka = self.config.kafka
        topics = dict.fromkeys([kafka.items_topic, kafka.engagements_topic], PARTITIONS)
        letters = dict.fromkeys([kafka.dead_letters_topic, self.calm.kafka.dead_letters_topic], 1)
        create_topics(bootstrap, topics | letters, retention_ms="-1")
        self.feed = Feed(seed, PARTITIONS)
        self.starts = 0
        self.recoveries_s: list[float] = []

    # -- the daemon ------------------------------------------------------------------------------------------------

    def more(self, events: int = 1_200, *, live: bool = False) -> None:
        """More records for the daemon to work on; ``live``: it reads them as they come."""
        self.feed.send(self.config.kafka, events, live=live)

    def command(self, *command: str, failpoints: str = "", **environment: str) -> Process:
        """Start a command on this index."""
        self.starts += 1
        log = self.folder / f"{self.starts:04d}-{command[0]}.log"
        armed = {"FACETSTREAM_FAILPOINTS": failpoints} if failpoints else {}
        arguments = [*command, "--config", str(self.file)]
        return Process(log, arguments, FACETSTREAM_LOG__FORMAT="json", **armed, **environment)

    def daemon(self, *arguments: str, failpoints: str = "", **environment: str) -> Process:
        """Start the daemon."""
        return self.command("run", *arguments, failpoints=failpoints, **environment)

    def opened(self, daemon: Process) -> bool:
        """Wait until all shards are open; False if the daemon ends first."""
        return daemon.until(lambda: daemon.count("shard_opened") >= PARTITIONS, "the shards to open")

    def ask(self, daemon: Process, path: str, document: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """What the daemon answers; None while it does not."""
        try:
            state = orjson.loads((self.config.data_dir / "daemon.json").read_bytes())
            return ask_daemon(state["url"], path, document) if state["pid"] == daemon.process.pid else None
        except (OSError, ValueError, DependencyError):
            return None

    def caught_up(self, daemon: Process) -> bool:
        """Wait until the daemon has applied all there is; False if it ends first."""

        def done() -> bool:
            found = self.ask(daemon, "/status") or {"offsets": {}}
            return sum(found["offsets"].values()) >= self.feed.records

        return daemon.until(done, "all records to be applied")

    def settle(self) -> None:
        """A start without any fault, to the end of the topics and to rest."""
        daemon = self.daemon()
        # A refresh that a fault has left undone is gone on with once all is applied.
        rested = self.caught_up(daemon) and daemon.until(
            lambda: not unfinished_generations(self.config.data_dir), "the end of refreshes that were left undone"
        )
        if not rested or self.ask(daemon, "/compact", {}) is None:
            raise ChaosError(f"the daemon ended by itself:\n{daemon.said()[-3_000:]}")
        self.recoveries_s.append(time.monotonic() - daemon.began)
        daemon.process.send_signal(signal.SIGTERM)
        if daemon.end() != 0:
            raise ChaosError(f"the daemon stopped with status {daemon.process.returncode}:\n{daemon.said()[-3_000:]}")

    def positions(self) -> dict[str, int]:
        """Where the stores stand; the daemon must be dead or not care."""
        with open_for_reading(self.config) as stores:
            return {name: at for store in stores.values() for name, at in store.offsets().items()}

    def lose_shard(self, shard: int) -> None:
        """As if the disk of a shard were new."""
        path = store_path(self.config.data_dir, current_generation(self.config.data_dir), shard)
        shutil.rmtree(path, ignore_errors=True)  # it may be lost already, and not be back yet

    # -- the verdict -----------------------------------------------------------------------------------------------

    def compare(self) -> Verdict:
        """Bring both to the end of the topics, and hold one against the other."""
        self.settle()
        run_daemon(self.calm, to_end=True)
        verdict = Verdict()
        for found in differences(self.state(self.calm), self.state(self.config), 1_000):
            kind = (
                verdict.lost
                if " is missing, " in found
                else verdict.duplicated
                if " should not be there, " in found or found.startswith("letters")
                else verdict.different
            )
            kind.append(found)
        with open_for_reading(self.config) as stores:
            reply = verify_shards(stores, load_model(self.config))
            if local_shards(self.config.data_dir, current_generation(self.config.data_dir)) != list(range(PARTITIONS)):
                verdict.violations.append("not all shards are here")
        verdict.violations += [f"{each.invariant}: {each.detail}" for each in reply.violations]
        return verdict

    def state(self, config: Config) -> LogicalState:
        """What an index at rest means, with its dead letters as the topic has them."""
        letters = list(read_topic(config.kafka))
        with open_for_reading(config) as stores:
            states = [
                logical_state(store, [letter for letter in letters if letter.partition == shard])
                for shard, store in stores.items()
            ]
        return merge(states)
