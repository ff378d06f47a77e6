"""Another model for the items of a running daemon: encoded anew beside it, caught up, switched to, kills and all."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from indexer.logical_state import differences
from schemas.config import KafkaConfig
from streamer.generations import generations, local_shards, pointer
from streamer.refreshing import unfinished_generations
from tests.asking import KNOWN_LINES, Asking, send_while
from tests.builders import random_log, tiny_model
from tests.conftest import FreshTopics
from tests.daemons import Daemon, World

pytestmark = pytest.mark.slow

FIRST, SECOND, THIRD = "g000001", "g000002", "g000003"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two shards of an event log, two models."""
    with World(tmp_path, KafkaConfig(), 2, tmp_path / "log") as found:
        yield filled(found)


@pytest.fixture
def kafka_world(tmp_path: Path, fresh_topics: FreshTopics) -> Iterator[World]:
    """Two shards of topics, two models."""
    with World(tmp_path, fresh_topics(2), 2) as found:
        yield filled(found)


def filled(world: World) -> World:
    tiny_model(seed=1).save(world.folder / "other")
    world.settings("data", together=False)
    world.send(KNOWN_LINES)
    world.send(random_log(31, 1_500))
    return world


def serves(daemon: Daemon, generation: str) -> bool:
    return bool(daemon.status()["generation"] == generation)


def assert_as_built_anew(world: World, model: str) -> None:
    """The index means what one daemon alone makes of everything with the model; each dead letter is there once."""
    fresh, letters = world.undisturbed(model)
    assert not differences(fresh, world.state("data"))
    assert world.letters("data") == dict.fromkeys(letters, 1)


@pytest.mark.parametrize("source", ["eventlog", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_a_refresh_loses_no_event_and_no_answer(request: pytest.FixtureRequest, source: str) -> None:
    world: World = request.getfixturevalue("world" if source == "eventlog" else "kafka_world")
    daemon = world.run("data").until_ready()
    with Asking(daemon) as asking, ThreadPoolExecutor(1) as pool:
        over = threading.Event()
        sending = pool.submit(send_while, world, over)
        told = world.reply("data", "refresh", "--model", world.folder / "other")
        over.set()
        sending.result()
        world.until_applied(daemon)
        asked = asking.answers
        daemon.until(lambda: asking.answers > asked + 20, "answers of the new generation")
    assert not asking.wrong, asking.wrong[:3]
    assert (told["generation"], told["previous"]) == (SECOND, FIRST)
    assert told["before"] == tiny_model().manifest.model_hash
    assert [0 < facet["changed"] <= 1 and -1 <= facet["similarity"] < 1 for facet in told["facets"]] == [True] * 2
    assert daemon.status()["model_hash"] == tiny_model(seed=1).manifest.model_hash
    listed = {row["generation"]: row for row in world.reply("data", "generation", "list")["generations"]}
    assert (listed[FIRST]["role"], listed[SECOND]["role"]) == ("previous", "current")
    assert listed[FIRST]["refreshed"] is None
    assert listed[SECOND]["refreshed"]["items"] == told["items"]
    metrics = daemon.ask_text("/metrics")
    assert 'facetstream_refreshes_total{outcome="done"} 1.0' in metrics
    assert 'facetstream_refresh_similarity{facet="1",stat="p05"}' in metrics
    assert "of this model already" in world.command("data", "refresh", "--model", world.folder / "other", code=2)
    daemon.terminate()
    assert_as_built_anew(world, "other")


def test_the_model_before_takes_over_again(world: World) -> None:
    daemon = world.run("data").until_ready()
    world.command("data", "refresh", "--model", world.folder / "other")
    world.send(random_log(32, 200))
    assert world.reply("data", "generation", "rollback") == {"current": FIRST, "previous": SECOND}
    world.until_applied(daemon)
    daemon.terminate()
    assert_as_built_anew(world, "model")


def test_without_a_daemon_it_is_done_at_once(world: World) -> None:
    world.run("data", "--until-end").end()
    world.send(random_log(32, 200))
    told = world.reply("data", "refresh", "--model", world.folder / "other")
    assert pointer(world.data_dir("data")).current == told["generation"] == SECOND
    assert "leaves" in world.command("data", "verify")
    world.run("data", "--until-end").end()
    assert_as_built_anew(world, "other")


def test_a_model_that_reads_what_was_not_counted_is_refused(world: World) -> None:
    tiny_model(half_lives_s=(7,)).save(world.folder / "third")
    daemon = world.run("data").until_ready()
    said = world.command("data", "refresh", "--model", world.folder / "third", code=3)
    assert "half-life of 7 s" in said
    assert generations(world.data_dir("data")) == [FIRST]
    assert daemon.status()["promotion"] is None


def test_a_model_with_another_prior_alone_is_another_model(world: World) -> None:
    tiny_model(half_lives_s=(3_600, 86_400)).save(world.folder / "twin")
    world.run("data", "--until-end").end()
    told = world.reply("data", "refresh", "--model", world.folder / "twin")
    assert [(facet["changed"], round(facet["similarity"], 5)) for facet in told["facets"]] == [(0, 1), (0, 1)]
    assert "leaves" in world.command("data", "verify")
    world.run("data", "--until-end").end()
    assert_as_built_anew(world, "twin")


def test_newer_artifacts_are_followed_and_one_that_was_gone_back_from_is_not(world: World) -> None:
    models = world.folder / "models"
    shutil.copytree(world.folder / "model", models / "news-0001")
    daemon = world.run("data", FACETSTREAM_MODEL__FOLLOW=str(models)).until_ready()
    assert daemon.status()["generation"] == FIRST
    tiny_model(seed=1).save(models / "news-0002")
    daemon.until(lambda: serves(daemon, SECOND), "the second model")
    world.send(random_log(33, 100))
    world.command("data", "generation", "rollback")
    tiny_model(seed=2).save(models / "news-0003")
    daemon.until(lambda: serves(daemon, THIRD), "the third model")
    assert [event["generation"] for event in daemon.events("refresh_begun")] == [SECOND, THIRD]
    # What served and is neither in use nor the one before is dropped.
    daemon.until(lambda: generations(world.data_dir("data")) == [FIRST, THIRD], "the second one dropped")
    world.until_applied(daemon)
    daemon.terminate()
    tiny_model(seed=2).save(world.folder / "last")
    assert_as_built_anew(world, "last")


def test_a_directory_without_artifacts_to_follow_is_named_once(world: World) -> None:
    daemon = world.run("data", FACETSTREAM_MODEL__FOLLOW=str(world.folder / "mistyped")).until_ready()
    daemon.until(lambda: bool(daemon.events("nothing_to_follow")), "the warning")
    time.sleep(1.5)
    (said,) = daemon.events("nothing_to_follow")
    assert said["directory"] == str(world.folder / "mistyped")


def children(daemon: Daemon) -> list[int]:
    tasks = Path(f"/proc/{daemon.process.pid}/task")
    return [int(pid) for path in tasks.glob("*/children") for pid in path.read_text().split()]


@pytest.mark.parametrize("hit", [1, 2])
@pytest.mark.parametrize("point", ["refresh.begun", "refresh.linked"])
def test_a_daemon_that_is_killed_goes_on(world: World, point: str, hit: int) -> None:
    daemon = world.run("data", FACETSTREAM_FAILPOINTS=f"{point}=kill@{hit}").until_ready()
    assert "did not answer" in world.command("data", "refresh", "--model", world.folder / "other", code=3)
    assert daemon.process.wait(60) == -signal.SIGKILL
    assert pointer(world.data_dir("data")).current == FIRST
    assert len(local_shards(world.data_dir("data"), SECOND)) == hit - 1
    world.send(random_log(34, 300))
    daemon = world.run("data").until_ready()
    daemon.until(lambda: serves(daemon, SECOND), "the refresh gone on with")
    assert not unfinished_generations(world.data_dir("data"))
    world.until_applied(daemon)
    daemon.terminate()
    assert_as_built_anew(world, "other")


def test_what_is_just_begun_does_not_pass_for_left_behind(world: World) -> None:
    """It is looked for what a killed process left behind twice a second, which a slow disk may take to begin."""
    slow = "refresh.named=sleep:1500;refresh.encoded=sleep:1000"
    daemon = world.run("data", FACETSTREAM_FAILPOINTS=slow).until_ready()
    asking = world.begin("data", "refresh", "--model", world.folder / "other")
    daemon.until(lambda: bool(children(daemon)), "the process that encodes")
    assert unfinished_generations(world.data_dir("data")) == [SECOND]
    asking.end()
    assert serves(daemon, SECOND)
    assert len(daemon.events("refresh_begun")) == 1
    assert "refresh_not_begun" not in daemon.said()


def test_one_that_was_killed_before_it_had_its_model_is_dropped(world: World) -> None:
    daemon = world.run("data", FACETSTREAM_FAILPOINTS="refresh.named=kill").until_ready()
    world.command("data", "refresh", "--model", world.folder / "other", code=3)
    assert daemon.process.wait(60) == -signal.SIGKILL
    assert unfinished_generations(world.data_dir("data")) == [SECOND]
    daemon = world.run("data").until_ready()
    daemon.until(lambda: generations(world.data_dir("data")) == [FIRST], "what was begun dropped")
    assert serves(daemon, FIRST)


def test_what_a_daemon_is_making_is_not_dropped(world: World) -> None:
    daemon = world.run("data", FACETSTREAM_FAILPOINTS="refresh.encoded=sleep:2000").until_ready()
    asking = world.begin("data", "refresh", "--model", world.folder / "other")
    daemon.until(lambda: bool(children(daemon)), "the process that encodes")
    said = world.command("data", "generation", "drop", SECOND, code=2)
    assert f"generation {SECOND} is being promoted" in said
    asking.end()
    assert serves(daemon, SECOND)


def test_a_daemon_that_is_killed_right_after_the_switch_has_switched(world: World) -> None:
    daemon = world.run("data", FACETSTREAM_FAILPOINTS="refresh.promoted=kill").until_ready()
    world.command("data", "refresh", "--model", world.folder / "other", code=3)
    assert daemon.process.wait(60) == -signal.SIGKILL
    daemon = world.run("data").until_ready()
    assert serves(daemon, SECOND)
    daemon.until(lambda: not unfinished_generations(world.data_dir("data")), "the note removed")
    daemon.terminate()
    assert pointer(world.data_dir("data")).previous == FIRST
    assert_as_built_anew(world, "other")


@pytest.mark.parametrize("point", ["refresh.encoded", "refresh.filed", "refresh.renamed"])
def test_the_process_that_encodes_is_killed(world: World, point: str) -> None:
    daemon = world.run("data", FACETSTREAM_FAILPOINTS=f"{point}=kill").until_ready()
    said = world.command("data", "refresh", "--model", world.folder / "other", code=3)
    assert "ended by SIGKILL" in said
    assert f"{FIRST} goes on" in said
    assert local_shards(world.data_dir("data"), FIRST) == [0, 1]  # what was given up is not theirs
    world.send(random_log(34, 300))
    world.until_applied(daemon)
    time.sleep(1.5)  # it is looked for what is left undone twice a second
    assert serves(daemon, FIRST)
    assert len(daemon.events("refresh_begun")) == 1
    daemon.kill()
    daemon = world.run("data").until_ready()
    daemon.until(lambda: serves(daemon, SECOND), "the refresh gone on with")
    daemon.terminate()
    assert_as_built_anew(world, "other")


def test_the_process_that_encodes_ends_with_its_daemon(world: World) -> None:
    daemon = world.run("data", FACETSTREAM_FAILPOINTS="refresh.encoded=sleep:600000").until_ready()
    asking = world.begin("data", "refresh", "--model", world.folder / "other")
    daemon.until(lambda: bool(children(daemon)), "the process that encodes")
    (child,) = children(daemon)
    world.send(random_log(34, 300))
    world.until_applied(daemon)  # events never wait for it
    daemon.kill()
    asking.end(3)
    daemon = world.run("data")
    daemon.until(lambda: not running(child), "the end of the process that encodes")
    daemon.until_ready()
    daemon.until(lambda: serves(daemon, SECOND), "the refresh gone on with")
    daemon.terminate()
    assert_as_built_anew(world, "other")


def test_an_interrupt_of_the_terminal_is_the_daemons(world: World) -> None:
    daemon = world.run("data", FACETSTREAM_FAILPOINTS="refresh.encoded=sleep:600000").until_ready()
    world.begin("data", "refresh", "--model", world.folder / "other")
    daemon.until(lambda: bool(children(daemon)), "the process that encodes")
    (child,) = children(daemon)
    image = world.data_dir("data") / "generations" / SECOND
    daemon.until(lambda: ignores_interrupts(child) and any(image.glob("*.partial")), "its work begun")
    os.kill(child, signal.SIGINT)
    daemon.signal(signal.SIGINT)
    daemon.end()
    assert "promotion_failed" not in daemon.said()


def ignores_interrupts(pid: int) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigIgn"], 16) & 1 << (signal.SIGINT - 1))


def test_a_daemon_that_stops_does_not_wait_for_it(world: World) -> None:
    daemon = world.run("data", FACETSTREAM_FAILPOINTS="refresh.encoded=sleep:600000").until_ready()
    asking = world.begin("data", "refresh", "--model", world.folder / "other")
    daemon.until(lambda: bool(children(daemon)), "the process that encodes")
    (child,) = children(daemon)
    daemon.terminate()
    asking.end(None)
    assert not running(child)
    assert unfinished_generations(world.data_dir("data")) == [SECOND]
    told = world.reply("data", "refresh", "--model", world.folder / "other")
    assert told["generation"] == SECOND


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
