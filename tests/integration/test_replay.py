"""Reading a part of the source again, or into an index that is not live: nothing changes that is already there."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from indexer.logical_state import differences
from indexer.store import Store, store_path
from schemas.config import KafkaConfig
from schemas.errors import StoreError
from streamer.generations import local_shards
from tests.builders import random_log, tiny_model
from tests.conftest import FreshTopics
from tests.daemons import World

pytestmark = pytest.mark.slow

FIRST, SECOND = "g000001", "g000002"
SPAN_MS = 10_000_000


@pytest.fixture(params=["eventlog", pytest.param("kafka", marks=pytest.mark.kafka)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Two shards, of an event log and of topics; one daemon alone, no group."""
    if request.param == "kafka":
        fresh_topics: FreshTopics = request.getfixturevalue("fresh_topics")
        kafka, log = fresh_topics(2), None
    else:
        kafka, log = KafkaConfig(), tmp_path / "log"
    with World(tmp_path, kafka, 2, log) as found:
        tiny_model(seed=1).save(tmp_path / "other")
        found.settings("data", together=False)
        found.send(random_log(71, 2_000))
        yield found


@pytest.fixture
def log_world(tmp_path: Path) -> Iterator[World]:
    """Two shards of an event log."""
    with World(tmp_path, KafkaConfig(), 2, tmp_path / "log") as found:
        tiny_model(seed=1).save(tmp_path / "other")
        found.settings("data")
        found.send(random_log(71, 2_000))
        yield found


def sequences(world: World, generation: str = FIRST) -> dict[int, int]:
    """Shard -> how many writes its RocksDB has seen."""
    found = {}
    data_dir = world.data_dir("data")
    for shard in local_shards(data_dir, generation):
        with Store.open_secondary(store_path(data_dir, generation, shard)) as store:
            found[shard] = store._db.latest_sequence_number()
    return found


def test_what_is_there_already_changes_nothing(world: World) -> None:
    world.run("data", "--until-end").end()
    before, letters = world.state("data"), world.letters("data")
    world.reply("data", "replay")  # where the dead letters of all shards end may have moved, and is noted once
    counts = sequences(world)
    for bounds in (("--from", "earliest"), (), ("--from", "10", "--to", "50"), ("--from", "0", "--to", "999999")):
        done = world.reply("data", "replay", *bounds)
        assert done["applied"] == 0
        assert done["repeated"] == {(): 0, ("--from", "10", "--to", "50"): 160}.get(bounds, world.sent)
        assert done["offsets"] == dict(before.offsets)
    assert sequences(world) == counts
    assert not differences(before, world.state("data"))
    assert world.letters("data") == letters


def test_parts_come_to_the_same_as_the_whole(world: World) -> None:
    world.run("data", "--until-end").end()
    create = ("generation", "create", "--model", world.folder / "other", "--no-build")
    assert world.reply("data", *create)["generation"] == SECOND
    into = ("replay", "--generation", SECOND)
    letters = world.letters("data")
    first = world.reply("data", *into, "--from", "earliest", "--to", "300")
    assert first["applied"] == 1_200
    said = world.command("data", *into, "--from", "310", code=2)
    assert "the store stands at 300 of" in said
    assert "would leave out 10 records" in said
    second = world.reply("data", *into, "--from", "200")
    assert (second["applied"], second["repeated"]) == (world.sent - 1_200, 400)
    assert not differences(world.undisturbed("other")[0], world.state("data", generation=SECOND))
    assert world.letters("data") == letters if world.log is None else True


def test_bounds_may_be_times(log_world: World) -> None:
    world = log_world
    world.reply("data", "replay", "--to", "1970-01-01T01:00:00Z")
    with_times = world.state("data")
    assert 0 < sum(with_times.offsets.values()) < world.sent
    for name, offset in with_times.offsets.items():
        lines = (world.folder / "log" / f"{name[:-2]}-{name[-1]:0>5}.jsonl").read_bytes().splitlines()
        times = [json.loads(line).get("occurred_at", -1) for line in lines]
        assert times[offset] >= 3_600_000
        assert all(at < 3_600_000 for at in times[:offset])
    world.reply("data", "replay", "--from", "1970-01-01T00:30:00Z", "--to", "latest")
    assert not differences(world.undisturbed()[0], world.state("data"))


def test_bounds_that_make_no_sense_are_refused(log_world: World) -> None:
    world = log_world
    said = world.command("data", "replay", "--from", "50", "--to", "20", code=2)
    assert "would start at 50 and stop at 20" in said
    said = world.command("data", "replay", "--from", "noon", code=2)
    assert "'noon' is no place in a topic: give earliest, latest, an offset, or a time" in said
    assert "there is no generation 'g9'" in world.command("data", "replay", "--generation", "g9", code=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_replay_is_asked_for_again(log_world: World, number: signal.Signals) -> None:
    world = log_world
    replaying = world.begin("data", "replay", "--rate", "300")
    data_dir = world.data_dir("data")

    def some() -> bool:
        found = 0
        with suppress(StoreError):  # it is being made
            for shard in local_shards(data_dir, FIRST):
                with Store.open_secondary(store_path(data_dir, FIRST, shard)) as store:
                    found += sum(store.offsets().values())
        return found > 200

    replaying.until(some, "some records")
    replaying.signal(number)
    said = replaying.end(None)
    assert "Traceback" not in said
    assert replaying.process.returncode != 0
    done = world.reply("data", "replay")
    assert 0 < done["applied"] < world.sent - 200
    assert not differences(world.undisturbed()[0], world.state("data"))


def test_a_rate_bounds_how_fast_it_reads(log_world: World) -> None:
    began = time.monotonic()
    done = log_world.reply("data", "replay", "--to", "150", "--rate", "400")
    assert time.monotonic() - began >= 0.9
    assert done["applied"] == 600
    assert done["records_per_second"] <= 700


def test_a_generation_that_a_daemon_keeps_is_left_to_it(log_world: World) -> None:
    world = log_world
    daemon = world.run("data").until_ready()
    said = world.command("data", "replay", "--from", "earliest", code=3)
    assert f"a daemon keeps generation {FIRST} up to date here" in said
    made: Any = world.reply("data", "generation", "create", "--model", world.folder / "other", "--no-build")
    assert world.reply("data", "replay", "--generation", made["generation"])["applied"] == world.sent
    assert daemon.ask("/readyz")[0] == 200
    daemon.terminate()


def test_lag_and_stats_tell_whether_it_makes_progress(log_world: World) -> None:
    world = log_world
    world.run("data", "--until-end").end()
    assert "no daemon runs here" in world.command("data", "lag")
    daemon = world.run("data").until_ready()
    assert "the daemon makes progress" in world.command("data", "stats")
    rows = world.reply("data", "lag")["daemon"]
    assert [(row["shard"], row["state"], row["progressing"]) for row in rows] == [
        (0, "ready", True),
        (1, "ready", True),
    ]
    daemon.terminate()
