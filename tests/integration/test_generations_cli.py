"""Index versions side by side: built, promoted, rolled back and dropped while a daemon answers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from indexer.logical_state import differences
from schemas.config import KafkaConfig
from schemas.errors import StoreLockedError
from streamer.generations import Pointer, drop_generation, generations, load_model, pointer
from streamer.replay import replay
from streamer.shards import Generation
from tests.asking import KNOWN_LINES, Asking, send_while
from tests.builders import random_log, tiny_model
from tests.conftest import FreshTopics, kafka_config
from tests.daemons import World
from tests.kafka.broker import Broker, create_topics

pytestmark = pytest.mark.slow

FIRST, SECOND = "g000001", "g000002"


def lines(seed: int, events: int) -> dict[str, list[bytes]]:
    found = random_log(seed, events)
    found["items-00000"] = KNOWN_LINES["items-00000"] + found["items-00000"]
    return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two shards of an event log, two models."""
    with World(tmp_path, KafkaConfig(), 2, tmp_path / "log") as found:
        tiny_model(seed=1).save(tmp_path / "other")
        found.settings("data")
        found.send(lines(31, 1_500))
        yield found


@pytest.fixture
def kafka_world(tmp_path: Path, fresh_topics: FreshTopics) -> Iterator[World]:
    """Two shards of topics, two models."""
    with World(tmp_path, fresh_topics(2), 2) as found:
        tiny_model(seed=1).save(tmp_path / "other")
        found.settings("data", together=False)
        found.send(lines(31, 1_500))
        yield found


def create_beside(world: World) -> Any:
    return world.reply("data", "generation", "create", "--model", world.folder / "other")


@pytest.mark.parametrize("source", ["eventlog", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_a_new_model_takes_over_without_losing_an_event_or_an_answer(
    request: pytest.FixtureRequest, source: str
) -> None:
    world: World = request.getfixturevalue("world" if source == "eventlog" else "kafka_world")
    daemon = world.run("data").until_ready()
    with Asking(daemon) as asking:
        made = create_beside(world)
        assert made["generation"] == SECOND
        assert made["applied"] == world.sent
        world.send(random_log(32, 1_000))
        with ThreadPoolExecutor(1) as pool:
            going_on = threading.Event()
            sending = pool.submit(send_while, world, going_on)
            promoted = world.reply("data", "generation", "promote", SECOND)
            going_on.set()
            sending.result()
        assert promoted == {"current": SECOND, "previous": FIRST}
        assert daemon.status()["generation"] == SECOND
        assert daemon.status()["model_hash"] == tiny_model(seed=1).manifest.model_hash
        world.until_applied(daemon)
        asked = asking.answers
        daemon.until(lambda: asking.answers > asked + 20, "answers of the new generation")
    assert asking.answers > 50
    assert not asking.wrong, asking.wrong[:3]
    said = world.command("data", "generation", "drop", SECOND, code=2)
    assert f"generation {SECOND} is in use" in said
    listed = {row["generation"]: row for row in world.reply("data", "generation", "list")["generations"]}
    assert (listed[FIRST]["role"], listed[SECOND]["role"]) == ("previous", "current")
    daemon.terminate()

    fresh, letters = world.undisturbed("other")
    assert not differences(fresh, world.state("data"))
    assert world.letters("data") == dict.fromkeys(letters, 1)


@pytest.mark.kafka
def test_rolling_back_and_forth_keeps_each_dead_letter_once(kafka_world: World) -> None:
    world = kafka_world
    daemon = world.run("data").until_ready()
    create_beside(world)
    with Asking(daemon) as asking:
        for seed, command in enumerate([("promote", SECOND), ("rollback",), ("rollback",)]):
            world.send(random_log(50 + seed, 200))
            told = world.reply("data", "generation", *command)
            assert told["current"] == (SECOND, FIRST, SECOND)[seed]
            world.send(random_log(60 + seed, 200))
        world.until_applied(daemon)
    assert not asking.wrong
    daemon.terminate()
    daemon = world.run("data").until_ready()
    daemon.terminate()
    letters = world.letters("data")
    for generation, model in ((SECOND, "other"), (FIRST, "model")):
        config = world.config("data")
        replay(config, Generation(generation, load_model(config, generation)))
        fresh, expected = world.undisturbed(model)
        assert not differences(fresh, world.state("data", generation=generation))
        assert letters == dict.fromkeys(expected, 1)
    assert world.letters("data") == letters


def test_a_generation_that_is_behind_is_promoted_by_force_or_by_a_daemon_only(world: World) -> None:
    world.run("data", "--until-end").end()
    world.reply("data", "generation", "create", "--model", world.folder / "other", "--no-build", "--name", "next")
    assert "holds no store" in world.command("data", "generation", "promote", "next", code=3)
    half = world.reply("data", "replay", "--generation", "next", "--to", "100")
    assert half["applied"] == 400
    said = world.command("data", "generation", "promote", "next", code=3)
    assert f"generation next is {world.sent - 400} records behind {FIRST}" in said
    assert "facetstream replay --generation next" in said
    assert pointer(world.data_dir("data")).current == FIRST
    world.command("data", "generation", "promote", "next", "--force")
    assert pointer(world.data_dir("data")) == Pointer("next", FIRST)
    assert "is in use already" in world.command("data", "generation", "promote", "next", code=2)
    assert "there is no generation 'nowhere'" in world.command("data", "generation", "promote", "nowhere", code=1)
    assert world.reply("data", "generation", "rollback")["current"] == FIRST
    dropped = world.reply("data", "generation", "drop", "next")
    assert dropped["bytes"] > 0
    assert generations(world.data_dir("data")) == [FIRST]
    assert f"no generation before {FIRST}" in world.command("data", "generation", "rollback", code=1)


@pytest.mark.kafka
def test_a_broker_that_is_away_as_another_takes_over_is_waited_for(tmp_path: Path, own_broker: Broker) -> None:
    kafka = kafka_config(own_broker.bootstrap)
    topics = {kafka.items_topic: 1, kafka.engagements_topic: 1, kafka.dead_letters_topic: 1}
    create_topics(own_broker.bootstrap, topics, retention_ms="-1")
    with World(tmp_path, kafka, 1) as world:
        tiny_model(seed=1).save(tmp_path / "other")
        world.settings("data", together=False, more="live_after_s = 3")
        world.send(random_log(41, 400, 1))
        world.run("data", "--until-end").end()
        create_beside(world)
        daemon = world.run("data", FACETSTREAM_FAILPOINTS="promote.after=stop").until_ready()
        daemon.ask("/promote", {"generation": SECOND})
        daemon.until(daemon.stopped, "the switch")
        own_broker.freeze()
        daemon.signal(signal.SIGCONT)
        daemon.until_logged("shard_closed")
        alive = []

        def waits() -> bool:
            alive.append(daemon.ask("/livez")[0])
            return bool(daemon.events("succession_waits"))

        daemon.until(waits, "the broker to be waited for")
        assert set(alive) == {200}  # all else goes on meanwhile
        own_broker.thaw()
        world.send(random_log(42, 400, 1))
        world.until_applied(daemon)
        daemon.terminate()
        fresh, letters = world.undisturbed("other")
        assert not differences(fresh, world.state("data"))
        assert letters
        assert world.letters("data") == dict.fromkeys(letters, 1)


def test_what_a_daemon_has_open_is_not_dropped(world: World) -> None:
    world.run("data", "--until-end").end()
    create_beside(world)
    # Asked to stop there, the process keeps the coming generation's stores open.
    daemon = world.run("data", FACETSTREAM_FAILPOINTS="shard.opened=sleep:600000@3").until_ready()
    daemon.ask("/promote", {"generation": SECOND})
    daemon.until_logged("shard_opened", 3)
    assert "is being promoted" in world.command("data", "generation", "drop", SECOND, code=2)
    with pytest.raises(StoreLockedError):
        drop_generation(world.data_dir("data"), SECOND)
    assert "is being promoted" in world.command("data", "generation", "promote", SECOND, code=2)
    daemon.kill()
    assert world.reply("data", "generation", "drop", SECOND)["dropped"] == SECOND
    assert generations(world.data_dir("data")) == [FIRST]


@pytest.mark.parametrize("point", ["promote.before", "promote.after"])
def test_a_crash_while_promoting_leaves_one_of_the_two_in_use(world: World, point: str) -> None:
    world.run("data", "--until-end").end()
    create_beside(world)
    daemon = world.run("data", FACETSTREAM_FAILPOINTS=f"{point}=kill").until_ready()
    world.send(random_log(34, 300))
    assert "did not answer" in world.command("data", "generation", "promote", SECOND, code=3)
    assert daemon.process.wait(60) == -signal.SIGKILL
    expected = FIRST if point == "promote.before" else SECOND
    assert pointer(world.data_dir("data")).current == expected
    daemon = world.run("data").until_ready()
    assert daemon.status()["generation"] == expected
    world.until_applied(daemon)
    daemon.terminate()
    fresh, _ = world.undisturbed("model" if expected == FIRST else "other")
    assert not differences(fresh, world.state("data"))


def test_a_crash_after_a_generation_was_made_is_got_over(world: World) -> None:
    killed = world.run("data", "--until-end", FACETSTREAM_FAILPOINTS="generation.created=kill")
    killed.end(-signal.SIGKILL)
    world.run("data", "--until-end").end()
    killed_again = world.begin(
        "data",
        *("generation", "create", "--model", world.folder / "other"),
        FACETSTREAM_FAILPOINTS="generation.created=kill",
    )
    killed_again.end(-signal.SIGKILL)
    assert pointer(world.data_dir("data")).current == FIRST
    said = world.command("data", "generation", "create", "--model", world.folder / "other", "--name", SECOND, code=2)
    assert f"`facetstream replay --generation {SECOND}` goes on building it" in said
    assert world.reply("data", "replay", "--generation", SECOND)["applied"] == world.sent
    assert not differences(world.undisturbed("other")[0], world.state("data", generation=SECOND))


def test_a_model_that_nothing_was_built_with_is_refused(world: World) -> None:
    world.run("data", "--until-end").end()
    tiny_model(seed=2).save(world.folder / "third")
    said = world.run("data", "--until-end", "--model", str(world.folder / "third")).end(3)
    assert tiny_model(seed=2).manifest.model_hash in said
    assert "generation create --model" in said
    create_beside(world)  # now a generation was built with the other model, either may be configured
    world.run("data", "--until-end", "--model", str(world.folder / "other")).end()


def test_a_promotion_that_fails_is_told_and_what_serves_goes_on(world: World) -> None:
    world.run("data", "--until-end").end()
    create_beside(world)
    for shard in ("shard-00000", "shard-00001"):
        for table in (world.data_dir("data") / "generations" / SECOND / shard).glob("MANIFEST-*"):
            table.write_bytes(b"damaged")
    daemon = world.run("data").until_ready()
    said = world.command("data", "generation", "promote", SECOND, code=3)
    assert f"generation {SECOND} was not promoted" in said
    assert f"{FIRST} goes on" in said
    status = daemon.status()
    assert status["generation"] == FIRST
    assert status["promotion"]["state"] == "failed"
    assert SECOND in status["promotion"]["error"]
    world.send(random_log(35, 300))
    world.until_applied(daemon)
    daemon.terminate()
    assert pointer(world.data_dir("data")).current == FIRST
