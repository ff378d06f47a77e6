"""Checkpoints as a user takes and restores them, and starting again at another offset."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from indexer.checkpoints import CheckpointTarget
from indexer.checkpoints import list_ as list_checkpoints
from indexer.logical_state import differences
from indexer.store import Store, store_path
from schemas.config import KafkaConfig
from schemas.settings import FAILPOINTS_VARIABLE
from streamer.kafka_clients import open_admin
from tests.builders import random_log, tiny_model
from tests.conftest import FreshTopics
from tests.daemons import World
from tests.kafka.broker import create_topics

pytestmark = pytest.mark.slow

FIRST = "g000001"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two shards of an event log; another data directory for the same."""
    with World(tmp_path, KafkaConfig(), 2, tmp_path / "log") as found:
        found.settings("data")
        found.settings("other")
        found.send(random_log(81, 1_200))
        yield found


def listed(world: World, name: str = "data") -> list[Any]:
    return list(world.reply(name, "checkpoint", "list")["checkpoints"])


def test_what_a_daemon_copied_is_gone_on_from_elsewhere(world: World) -> None:
    daemon = world.run("data").until_ready()
    world.until_applied(daemon)
    made = world.reply("data", "checkpoint", "create")["checkpoints"]
    assert [row["shard"] for row in made] == [0, 1]
    assert sum(sum(row["offsets"].values()) for row in made) == world.sent
    assert {row["checkpoint"] for row in listed(world)} == {row["checkpoint"] for row in made}
    assert "stop it before restoring" in world.command("data", "checkpoint", "restore", code=3)
    daemon.terminate()
    world.send(random_log(82, 300))
    restored = world.reply("other", "checkpoint", "restore")["restored"]
    assert [row["checkpoint"] for row in restored] == [row["checkpoint"] for row in made]
    assert sum(world.state("other").offsets.values()) == world.sent - 300
    daemon = world.run("other").until_ready()
    assert not daemon.events("restored")
    world.until_applied(daemon)
    daemon.terminate()
    assert not differences(world.undisturbed()[0], world.state("other"))


def test_an_empty_data_directory_begins_with_the_newest_checkpoint(world: World) -> None:
    world.run("data", "--until-end").end()
    world.reply("data", "checkpoint", "create")
    daemon = world.run("other").until_ready()
    assert sorted(event["shard"] for event in daemon.events("restored")) == [0, 1]
    assert daemon.status()["records"] == 0
    daemon.terminate()
    assert not differences(world.undisturbed()[0], world.state("other"))
    shutil.rmtree(world.data_dir("other"))
    shutil.rmtree(world.folder / "checkpoints")
    daemon = world.run("other").until_ready()
    world.until_applied(daemon)
    assert not daemon.events("restored")
    assert daemon.status()["records"] == world.sent
    daemon.terminate()
    assert not differences(world.undisturbed()[0], world.state("other"))


def test_only_as_many_are_kept_as_configured(world: World) -> None:
    for events in (100, 100, 100):
        world.send(random_log(83, events))
        world.run("data", "--until-end").end()
        world.reply("data", "checkpoint", "create")
    rows = listed(world)
    assert sorted(row["shard"] for row in rows) == [0, 0, 1, 1]
    assert sum(sum(row["offsets"].values()) for row in rows) == world.sent + world.sent - 100


def test_a_store_that_is_there_is_replaced_on_request_only(world: World) -> None:
    world.run("data", "--until-end").end()
    world.reply("data", "checkpoint", "create")
    before = world.state("data")
    world.send(random_log(84, 100))
    world.run("data", "--until-end").end()
    assert "exists" in world.command("data", "checkpoint", "restore", code=3)
    rows = world.reply("data", "checkpoint", "restore", "--shard", "1", "--replace")["restored"]
    assert [row["shard"] for row in rows] == [1]
    world.reply("data", "checkpoint", "restore", "--replace")
    assert before.offsets == world.state("data").offsets
    aside = sorted(path.name for path in (world.data_dir("data") / "generations" / FIRST).glob("*.replaced-*"))
    assert [name.partition(".")[0] for name in aside] == ["shard-00000", "shard-00001", "shard-00001"]
    assert not list((world.data_dir("data") / "generations" / FIRST).glob(".*"))
    world.run("data", "--until-end").end()
    assert not differences(world.undisturbed()[0], world.state("data"))


def test_a_store_is_not_given_up_for_a_checkpoint_that_is_damaged_but_for_a_whole_one(world: World) -> None:
    world.run("data", "--until-end").end()
    world.reply("data", "checkpoint", "create")
    before, folder = world.state("data"), world.data_dir("data") / "generations" / FIRST
    files = {file: file.read_bytes() for file in (world.folder / "checkpoints").rglob("files/*")}
    for file in files:
        file.write_bytes(b"damage")
    names = sorted(path.name for path in folder.iterdir())
    assert "is damaged: its file" in world.command("data", "checkpoint", "restore", "--replace", code=3)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert not differences(before, world.state("data"))
    for file, content in files.items():
        file.write_bytes(content)
    (store_path(world.data_dir("data"), FIRST, 0) / "CURRENT").write_bytes(b"damage")
    world.reply("data", "checkpoint", "restore", "--replace")
    assert not differences(before, world.state("data"))


def test_an_offline_checkpoint_says_of_which_source_it_is(world: World) -> None:
    world.run("data", "--until-end").end()
    world.reply("data", "checkpoint", "create")
    found = list_checkpoints(CheckpointTarget(world.folder / "checkpoints"))
    assert [info.source["kind"] for info in found] == ["eventlog", "eventlog"]


def test_of_a_shard_at_rest_no_further_checkpoints_are_taken(world: World) -> None:
    world.settings("data", interval_s=0.1)
    daemon = world.run("data").until_ready()
    world.until_applied(daemon)

    def taken(shard: int) -> int:
        return sum(f"/shard-{shard:05d}/" in event["checkpoint"] for event in daemon.events("checkpoint_created"))

    def newest() -> dict[int, int]:
        return {row["shard"]: sum(row["offsets"].values()) for row in reversed(listed(world))}

    daemon.until(lambda: sum(newest().values()) == world.sent, "checkpoints of all there is")
    before = taken(0)
    for seed in range(3):
        seen = taken(1)
        world.send({name: part if name.endswith("1") else [] for name, part in random_log(seed, 40).items()})
        daemon.until(lambda seen=seen: taken(1) > seen, "one more of the other shard")  # type: ignore[misc]
    assert taken(0) == before
    daemon.terminate()


def test_a_daemon_ends_although_a_checkpoint_hangs(world: World) -> None:
    world.settings("data", interval_s=0.1)
    daemon = world.run("data", **{FAILPOINTS_VARIABLE: "checkpoint.linked=sleep:600000"}).until_ready()
    world.until_applied(daemon)
    folder = world.data_dir("data") / "generations" / FIRST
    daemon.until(lambda: bool(list(folder.glob(".*.checkpoint"))), "an image")
    daemon.terminate()
    assert not listed(world)
    assert not differences(world.undisturbed()[0], world.state("data"))
    world.reply("data", "checkpoint", "create")
    assert not list(folder.glob(".*"))


def test_a_damaged_checkpoint_is_named_and_leaves_nothing(world: World) -> None:
    world.run("data", "--until-end").end()
    world.reply("data", "checkpoint", "create")
    for file in (world.folder / "checkpoints").rglob("files/*"):
        content = bytearray(file.read_bytes())
        if content:
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(content)
    said = world.command("other", "checkpoint", "restore", code=3)
    assert "is damaged: its file" in said
    assert not store_path(world.data_dir("other"), FIRST, 0).exists()
    # The daemon passes it over, says so, and replays.
    daemon = world.run("other").until_ready()
    assert len(daemon.events("checkpoint_passed_over")) == 2
    world.until_applied(daemon)
    daemon.terminate()


def test_a_checkpoint_of_another_model_is_no_checkpoint(world: World) -> None:
    world.run("data", "--until-end").end()
    world.reply("data", "checkpoint", "create")
    tiny_model(seed=1).save(world.folder / "second")
    said = world.command("other", "checkpoint", "restore", "--model", world.folder / "second", code=1)
    assert f"holds no checkpoint for model {tiny_model(seed=1).manifest.model_hash[:12]}" in said
    said = world.command("other", "checkpoint", "restore", "--shard", "7", code=1)
    assert "holds no checkpoint of shard 7" in said


@pytest.mark.kafka
def test_a_topic_made_anew_is_refused_until_told_to_start_there(tmp_path: Path, fresh_topics: FreshTopics) -> None:
    with World(tmp_path, fresh_topics(2), 2) as world:
        world.settings("data", together=False)
        world.send(random_log(91, 400))
        world.run("data", "--until-end").end()
        before = world.state("data")
        admin = open_admin(world.kafka)
        admin.delete_topics([world.kafka.items_topic])
        admin.close()
        create_topics(world.kafka.bootstrap_servers, {world.kafka.items_topic: 2}, retention_ms="-1")
        said = world.run("data").end(3)
        assert world.kafka.items_topic in said or "items" in said
        assert "--reset" in said
        items = [f"{world.kafka.items_topic}-{number}" for number in (0, 1)]
        for wrong, why in (
            ("items", "give PARTITION=WHERE"),
            (f"{items[0]}=noon", "'noon' is no place in a topic"),
            ("nothing-0=earliest", "the source has no such partition; it has"),
        ):
            assert why in world.run("data", "--reset", wrong).end(2)
        again = {name: part if "items" in name else [] for name, part in random_log(92, 400).items()}
        world.send(again)
        resets = [argument for name in items for argument in ("--reset", f"{name}=earliest")]
        done = world.run("data", *resets, "--until-end")
        assert len(done.events("offsets_reset")) == 2 or done.end()
        done.end()
        after = world.state("data")
        assert {name: after.offsets[name] for name in items} == {
            name: len(again[f"items-{name[-1]:0>5}"]) for name in items
        }
        assert before.items.keys() <= after.items.keys()
        for shard in (0, 1):
            with Store.open_secondary(store_path(world.data_dir("data"), FIRST, shard)) as store:
                assert any(b'"reset"' in value for _, value in store.scan("journal"))
        world.run("data", "--until-end").end()


def test_a_data_directory_keeps_to_its_kind_of_source(world: World) -> None:
    world.run("data", "--until-end").end()
    config = world.folder / "data.toml"
    config.write_text(config.read_text().replace('kind = "eventlog"', 'kind = "kafka"'))
    assert world.run("data", "--bootstrap", "127.0.0.1:9").process.wait(60) == 3
