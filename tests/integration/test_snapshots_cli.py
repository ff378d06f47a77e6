"""Snapshots as a user publishes and reads them: the daemon in one process, readers in others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from indexer.snapshots import SnapshotFollower
from schemas.config import KafkaConfig
from schemas.errors import NotFoundError
from tests.builders import random_log
from tests.daemons import DEADLINE_S, Daemon, World

pytestmark = pytest.mark.slow

_ENABLED = """
[snapshots]
enabled = true
url = "{url}"
delta_s = 0.1
full_after_share = 100.0
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two shards of an event log, published as they change."""
    with World(tmp_path, KafkaConfig(), 2, tmp_path / "log") as found:
        found.settings("data", more=_ENABLED.format(url=tmp_path / "snapshots"))
        found.settings("reader")
        found.send(random_log(31, 1_200))
        yield found


def until_published(world: World, daemon: Daemon, follower: SnapshotFollower) -> None:
    """Wait until readers have everything that was sent."""

    def there() -> bool:
        try:
            follower.refresh()
        except NotFoundError:
            return False
        return sum(sum(reader.at.offsets.values()) for reader in follower.readers.values()) == world.sent

    daemon.until(there, "everything to be published")


def answer(world: World, name: str, items: list[str], *more: str | Path) -> list[Any]:
    asked = [argument for item in items for argument in ("--item", item)]
    reply = world.reply(name, "query", *asked, "-k", "50", "--at", "10000000", *more)
    return [(row["item_id"], row["score"], row["shard"], row["leaf"]) for row in reply["results"]]


def test_what_the_daemon_publishes_is_read_elsewhere(world: World) -> None:
    url = world.folder / "snapshots"
    daemon = world.run("data").until_ready()
    follower = SnapshotFollower(str(url))
    until_published(world, daemon, follower)
    assert sorted(follower.readers) == [0, 1]
    for seed in (32, 33):
        world.send(random_log(seed, 300))
        until_published(world, daemon, follower)
    rows = world.reply("data", "snapshot", "list")["snapshots"]
    assert {(row["shard"], row["kind"]) for row in rows if row["current"]} >= {(0, "full"), (0, "delta"), (1, "full")}

    assert daemon.ask("/compact", {})[0] == 200
    made = world.reply("data", "snapshot", "full")["snapshots"]
    assert [(row["shard"], row["kind"]) for row in made] == [(0, "full"), (1, "full")]
    assert sum(sum(row["offsets"].values()) for row in made) == world.sent
    assert world.reply("data", "snapshot", "delta") == {"snapshots": []}  # nothing has changed
    items = [f"item {number}" for number in range(0, 150, 10)]
    found = answer(world, "reader", items, "--snapshots", url)
    assert len(found) == 50
    assert found == answer(world, "data", items)
    assert "snapshot_age" in daemon.ask_text("/metrics")
    assert "give {" in daemon.ask("/snapshot", {"kind": "half"})[1]["error"]
    daemon.terminate()

    world.send(random_log(34, 300))
    world.run("data", "--until-end", FACETSTREAM_SNAPSHOTS__ENABLED="false").end()
    follower.refresh()
    before = sum(sum(reader.at.offsets.values()) for reader in follower.readers.values())
    assert before == world.sent - 300
    made = world.reply("data", "snapshot", "delta")["snapshots"]
    assert [(row["shard"], row["kind"]) for row in made] == [(0, "delta"), (1, "delta")]
    assert follower.refresh()
    assert sum(sum(reader.at.offsets.values()) for reader in follower.readers.values()) == world.sent
    assert world.reply("data", "snapshot", "delta") == {"snapshots": []}
    current = {shard: reader.info.full for shard, reader in follower.readers.items()}
    world.send(random_log(35, 300))
    daemon = world.run("data").until_ready()
    until_published(world, daemon, follower)
    assert {shard: reader.info.full for shard, reader in follower.readers.items()} == current  # it goes on from them
    daemon.terminate()
    assert len(world.reply("data", "snapshot", "full")["snapshots"]) == 2
    assert answer(world, "data", items) == answer(world, "reader", items, "--snapshots", url)
    world.command("reader", "query", "--item", "x", "--snapshots", world.folder / "nothing", code=1)


def test_readers_follow_a_promotion(world: World) -> None:
    url = world.folder / "snapshots"
    daemon = world.run("data").until_ready()
    follower = SnapshotFollower(str(url))
    until_published(world, daemon, follower)
    world.command("data", "generation", "create", "--name", "g2", "--model", world.folder / "model")
    world.command("data", "generation", "promote", "g2")
    deadline = time.monotonic() + DEADLINE_S
    while {reader.meta.generation for reader in follower.readers.values()} != {"g2"}:
        assert time.monotonic() < deadline
        assert sorted(follower.readers) == [0, 1]
        follower.refresh()
        time.sleep(0.05)
    until_published(world, daemon, follower)
    daemon.terminate()
