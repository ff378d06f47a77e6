"""What can go wrong, and how it is brought about."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from indexer.failpoints import POINTS
from indexer.snapshots import SnapshotFollower
from model_runtime import artifact as artifacts
from model_runtime.published import newest
from schemas.errors import NotFoundError, UsageError
from streamer.generations import current_generation, generations, load_model
from streamer.publishing import url_of
from tests.builders import random_log, write_log
from tests.chaos.rig import PARTITIONS, ChaosError, Process, Rig
from tests.kafka.broker import Broker

KILLED: Final = -signal.SIGKILL
_TRAINING: Final = """
codewords = 4
dim = 4
token_dim = 4
hidden = [4]
steps = 3
labels = [{ name = "next", kind = "next" }]
[features]
buckets = 256
"""


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: as the table has it.
        strike: brings it about on an index that has records to work on; False if its place was not reached.
        kills: whether a process is killed by it.
    """

    name: str
    strike: Callable[[Rig, random.Random], bool]
    kills: bool = True


def failpoint_faults() -> list[Fault]:
    """A fault for each failpoint."""
    return [Fault(name, _STRIKES.get(name.partition(".")[0], _while_streaming)(name)) for name in POINTS]


def random_faults() -> list[Fault]:
    """SIGKILL from outside, at no place in particular."""
    return [
        Fault("SIGKILL while starting", _kill_starting),
        Fault("SIGKILL while recovering", _kill_recovering),
        Fault("SIGKILL at a random time", _kill_streaming),
        Fault("SIGKILL, its directory lost too", _kill_and_lose),
        Fault("SIGSTOP beyond the session timeout", _freeze, kills=False),
    ]


# -- at failpoints -----------------------------------------------------------------------------------------------------


def _ended_there(daemon: Process) -> bool:
    """Whether the process was killed, as it should be; ends it otherwise."""
    if daemon.end() != KILLED:
        raise ChaosError(f"ended with status {daemon.process.returncode}:\n{daemon.said()[-3_000:]}")
    return True


def _reached(rig: Rig, daemon: Process) -> bool:
    """Wait for the kill; give up when there is nothing left to do that could reach the place."""
    if rig.caught_up(daemon):
        rig.ask(daemon, "/compact", {})
        time.sleep(0.3)
    if daemon.process.poll() is None:
        daemon.kill()
        return False
    return _ended_there(daemon)


def _while_streaming(name: str) -> Callable[[Rig, random.Random], bool]:
    def strike(rig: Rig, dice: random.Random) -> bool:
        often = name.startswith(("batch", "wal", "commit", "letters"))
        hit = dice.randint(1, 8) if often else 1
        # Other bounds than at the starts before, so that they change.
        high = 24 + 4 * (rig.starts % 7)
        return _reached(rig, rig.daemon(failpoints=f"{name}=kill@{hit}", FACETSTREAM_REBALANCE__HIGH=str(high)))

    return strike


def _closing(name: str) -> Callable[[Rig, random.Random], bool]:
    def strike(rig: Rig, dice: random.Random) -> bool:
        if name != "shard.closing":
            return _while_streaming(name)(rig, dice)
        daemon = rig.daemon(failpoints=f"{name}=kill@{dice.randint(1, PARTITIONS)}")
        rig.opened(daemon)
        time.sleep(dice.uniform(0, 0.5))
        daemon.process.send_signal(signal.SIGTERM)
        return _ended_there(daemon)

    return strike


def _checkpointing(name: str) -> Callable[[Rig, random.Random], bool]:
    def strike(rig: Rig, dice: random.Random) -> bool:
        daemon = rig.daemon(failpoints=f"{name}=kill@{dice.randint(1, 2)}", FACETSTREAM_CHECKPOINTS__INTERVAL_S="0.1")
        return _ended_there(daemon)  # each shard has something new

    return strike


def _publishing(name: str) -> Callable[[Rig, random.Random], bool]:
    def strike(rig: Rig, dice: random.Random) -> bool:
        hit = dice.randint(1, 3) if name.startswith("delta") else dice.randint(1, PARTITIONS)
        told = {"FACETSTREAM_SNAPSHOTS__ENABLED": "true", "FACETSTREAM_SNAPSHOTS__DELTA_S": "0.02"}
        daemon = rig.daemon(failpoints=f"{name}=kill@{hit}", **told)
        if rig.caught_up(daemon):  # it publishes once it is ready, and again when more comes
            rig.more(300, live=True)
        reached = _reached(rig, daemon)
        follower = SnapshotFollower(url_of(rig.config))
        with contextlib.suppress(NotFoundError):
            follower.refresh()
        for reader in follower.readers.values():
            table = reader.centroids()
            for facet in range(reader.meta.facets):
                leaves = table.leaf[table.pointer[facet] : table.pointer[facet + 1]].tolist()
                filed = sum(len(reader.members(facet, leaf, 10**9)) for leaf in leaves)
                if filed != reader.at.items_live:
                    raise ChaosError(f"a reader has {filed} items of {reader.at.items_live}")
        return reached

    return strike


def _restoring(name: str) -> Callable[[Rig, random.Random], bool]:
    def strike(rig: Rig, dice: random.Random) -> bool:
        rig.command("checkpoint", "create").end()
        rig.lose_shard(dice.randrange(PARTITIONS))
        return _ended_there(rig.daemon(failpoints=f"{name}=kill"))

    return strike


def _resetting(name: str) -> Callable[[Rig, random.Random], bool]:
    def strike(rig: Rig, dice: random.Random) -> bool:
        partition, at = dice.choice(sorted(rig.positions().items()))
        return _ended_there(rig.daemon("--reset", f"{partition}={at}", failpoints=f"{name}=kill"))

    return strike


def _making(name: str) -> Callable[[Rig, random.Random], bool]:
    def strike(rig: Rig, _dice: random.Random) -> bool:
        made = ["--name", "half-made", "--model", str(rig.folder / "model")]
        _ended_there(rig.command("generation", "create", "--no-build", *made, failpoints=f"{name}=kill"))
        return rig.command("generation", "drop", "half-made").end() == 0

    return strike


def _promoting(name: str) -> Callable[[Rig, random.Random], bool]:
    def strike(rig: Rig, _dice: random.Random) -> bool:
        """Built with the same model, so that either generation means the same."""
        data_dir = rig.config.data_dir
        for old in generations(data_dir):
            if old != current_generation(data_dir):
                rig.command("generation", "drop", old).end()
        coming = f"next-{rig.starts}"
        built = rig.command("generation", "create", "--name", coming, "--model", str(rig.folder / "model"))
        if built.end() != 0:
            raise ChaosError(f"the generation was not built:\n{built.said()[-3_000:]}")
        rig.more(300)
        daemon = rig.daemon(failpoints=f"{name}=kill")
        rig.opened(daemon)
        rig.ask(daemon, "/promote", {"generation": coming})
        return _ended_there(daemon)

    return strike


def _refreshing(name: str) -> Callable[[Rig, random.Random], bool]:
    def strike(rig: Rig, _dice: random.Random) -> bool:
        """To the model that encodes alike and has another prior, so that either generation means the same."""
        twin = "model" if load_model(rig.config).manifest.prior is not None else "twin"
        daemon = rig.daemon(failpoints=f"{name}=kill")
        if rig.caught_up(daemon):
            with contextlib.suppress(UsageError):  # it goes on with one that an earlier fault has left undone
                rig.ask(daemon, "/refresh", {"model": str(rig.folder / twin)})
        daemon.until(
            lambda: daemon.count("promotion_failed") + daemon.count("generation_promoted") > 0, "the end of the refresh"
        )
        beside = name in {"refresh.encoded", "refresh.filed", "refresh.renamed"}
        reached = daemon.count("promotion_failed") > 0 if beside else daemon.process.poll() == KILLED
        daemon.kill()
        return reached

    return strike


def _training(name: str) -> Callable[[Rig, random.Random], bool]:
    def strike(rig: Rig, _dice: random.Random) -> bool:
        """The index has no part in it: what lies there must be whole, and the next trainer must get on with it."""
        folder = rig.folder / f"training-{rig.starts}"
        models = folder / "models"
        write_log(folder / "log", random_log(rig.starts, 600, 1))
        (folder / "settings.toml").write_text(_TRAINING)
        command = ["trainer", "--once", "--events", str(folder / "log"), "--models", str(models)]
        command += ["--settings", str(folder / "settings.toml")]
        _ended_there(Process(folder / "killed.log", command, FACETSTREAM_FAILPOINTS=f"{name}=kill"))
        whole = newest(models)
        if (whole is not None) != (name == "artifact.published"):
            raise ChaosError(f"after a kill at {name} the newest artifact is {whole}")
        again = Process(folder / "again.log", command)
        if again.end() != (0 if whole is None else 2):
            raise ChaosError(f"the trainer did not go on:\n{again.said()[-3_000:]}")
        found = newest(models)
        if found is None:
            raise ChaosError("the trainer published nothing")
        artifacts.load(found)
        return True

    return strike


_STRIKES: Final[dict[str, Callable[[str], Callable[[Rig, random.Random], bool]]]] = {
    "checkpoint": _checkpointing,
    "restore": _restoring,
    "snapshot": _publishing,
    "delta": _publishing,
    "reset": _resetting,
    "generation": _making,
    "promote": _promoting,
    "shard": _closing,
    "refresh": _refreshing,
    "artifact": _training,
}


# -- at any time -------------------------------------------------------------------------------------------------------


def _kill_starting(rig: Rig, dice: random.Random) -> bool:
    daemon = rig.daemon()
    time.sleep(dice.uniform(0.05, 2.0))
    daemon.kill()
    return True


def _kill_recovering(rig: Rig, dice: random.Random) -> bool:
    daemon = rig.daemon()
    daemon.until(lambda: daemon.count("started") > 0, "the start")
    time.sleep(dice.uniform(0, 0.6))
    daemon.kill()
    return True


def _kill_streaming(rig: Rig, dice: random.Random) -> bool:
    daemon = rig.daemon()
    rig.opened(daemon)
    time.sleep(dice.uniform(0, 1.2))
    daemon.kill()
    return True


def _kill_and_lose(rig: Rig, dice: random.Random) -> bool:
    """From a checkpoint of some time before, if there is one, or from nothing."""
    _kill_streaming(rig, dice)
    rig.lose_shard(dice.randrange(PARTITIONS))
    return True


def _freeze(rig: Rig, _dice: random.Random) -> bool:
    daemon = rig.daemon()
    rig.opened(daemon)
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(rig.config.kafka.session_timeout_s + 2)
    daemon.process.send_signal(signal.SIGCONT)
    reached = rig.caught_up(daemon)
    daemon.kill()
    return reached


# -- of the broker -----------------------------------------------------------------------------------------------------


def broker_faults(broker: Broker) -> list[Fault]:
    """What a broker does to a daemon that reads from it; it is nobody else's broker."""

    def strike(harm: Callable[[], None], heal: Callable[[], object]) -> Callable[[Rig, random.Random], bool]:
        def at_any_time(rig: Rig, dice: random.Random) -> bool:
            daemon = rig.daemon()
            rig.opened(daemon)
            time.sleep(dice.uniform(0, 0.3))
            harm()
            time.sleep(dice.uniform(1, 6))
            heal()
            reached = rig.caught_up(daemon)
            daemon.kill()
            return reached

        return at_any_time

    def both(rig: Rig, dice: random.Random) -> bool:
        _kill_streaming(rig, dice)
        broker.kill()
        broker.start()
        return True

    return [
        Fault("broker killed and started again", strike(broker.kill, broker.start), kills=False),
        Fault("broker stopped and started again", strike(broker.stop, broker.start), kills=False),
        Fault("broker frozen for seconds", strike(broker.freeze, broker.thaw), kills=False),
        Fault("broker and daemon killed together", both),
    ]
