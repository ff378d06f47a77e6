"""Records that a topic no longer has when a shard wants them: never passed over without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kafka import TopicPartition

from indexer.checkpoints import create
from indexer.store import Store, store_path
from schemas.config import Config
from schemas.errors import BrokerError
from streamer.checkpointing import target_of
from streamer.daemon import run_daemon
from streamer.generations import open_for_reading
from streamer.kafka_clients import open_admin
from tests.builders import tiny_model
from tests.kafka.records import produce

if TYPE_CHECKING:
    from schemas.config import KafkaConfig
    from tests.conftest import FreshTopics


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "model"
    tiny_model().save(path)
    return path


def chosen(kafka: KafkaConfig, folder: Path, model: Path, **changes: Any) -> Config:
    sections = {"kafka": kafka.model_copy(update=changes), "data_dir": folder, "model": {"path": model}}
    return Config.model_validate(sections | {"http": {"port": 0}, "checkpoints": {"url": f"{folder}-checkpoints"}})


def send(kafka: KafkaConfig, first: int, count: int, *, engagements: bool = False) -> None:
    event: dict[str, Any] = {"type": "item.created", "title": "word"}
    if engagements:
        event = {"type": "engagement", "user_id": "u", "kind": "click"}
    rows = []
    for number in range(first, first + count):
        item_id = f"item {number}"
        value = json.dumps(event | {"item_id": item_id, "occurred_at": 1_000 + number}).encode()
        rows.append((0, item_id.encode(), value))
    produce(kafka, kafka.engagements_topic if engagements else kafka.items_topic, rows)


def cut(kafka: KafkaConfig, topic: str, before: int) -> None:
    """Retention, at once."""
    admin = open_admin(kafka)
    try:
        admin.delete_records({TopicPartition(topic, 0): before})
    finally:
        admin.close()


def told(config: Config) -> tuple[int, int, int, dict[str, int]]:
    """Live items, engagements, records lost, offsets."""
    with open_for_reading(config) as stores:
        totals = stores[0].totals()
        return totals.items_live, totals.engagements_applied, totals.records_lost, stores[0].offsets()


def test_a_partition_that_was_empty_before_is_missed_when_its_first_records_go(
    fresh_topics: FreshTopics, tmp_path: Path, model: Path
) -> None:
    kafka = fresh_topics()
    config = chosen(kafka, tmp_path / "data", model)
    send(kafka, 0, 20)
    run_daemon(config, to_end=True)
    send(kafka, 0, 20, engagements=True)
    cut(kafka, kafka.engagements_topic, 10)
    with pytest.raises(BrokerError, match=r"the next offset to read is 0.*holds 10 to 20"):
        run_daemon(config, to_end=True)
    assert told(config)[:3] == (20, 0, 0)
    run_daemon(chosen(kafka, tmp_path / "data", model, on_gap="skip"), to_end=True)
    assert told(config)[:3] == (20, 10, 10)


def test_a_shard_whose_directory_is_lost_is_not_built_of_what_is_left(
    fresh_topics: FreshTopics, tmp_path: Path, model: Path
) -> None:
    kafka = fresh_topics()
    config = chosen(kafka, tmp_path / "data", model)
    send(kafka, 0, 100)
    run_daemon(config, to_end=True)
    cut(kafka, kafka.items_topic, 50)
    shutil.rmtree(config.data_dir)
    with pytest.raises(BrokerError, match=r"first 50 records were removed since group .* read them"):
        run_daemon(config, to_end=True)
    run_daemon(chosen(kafka, tmp_path / "data", model, on_gap="skip"), to_end=True)
    assert told(config)[0] == told(config)[2] == 50


def test_a_first_start_on_a_topic_that_was_cut_begins_where_it_begins(
    fresh_topics: FreshTopics, tmp_path: Path, model: Path
) -> None:
    kafka = fresh_topics()
    config = chosen(kafka, tmp_path / "data", model)
    send(kafka, 0, 30)
    send(kafka, 0, 5, engagements=True)
    cut(kafka, kafka.items_topic, 10)
    cut(kafka, kafka.engagements_topic, 5)  # nothing is left of it: it is at its end where it begins
    run_daemon(config, to_end=True)
    assert told(config) == (20, 0, 0, {f"{kafka.items_topic}-0": 30, f"{kafka.engagements_topic}-0": 5})
    send(kafka, 15, 5, engagements=True)
    run_daemon(config, to_end=True)
    assert told(config)[1:3] == (5, 0)


def test_a_directory_from_long_ago_makes_room_for_a_checkpoint_that_can_go_on(
    fresh_topics: FreshTopics, tmp_path: Path, model: Path
) -> None:
    kafka = fresh_topics()
    config = chosen(kafka, tmp_path / "data", model)
    send(kafka, 0, 10)
    run_daemon(config, to_end=True)
    shutil.copytree(config.data_dir, tmp_path / "long-ago")
    send(kafka, 10, 90)
    run_daemon(config, to_end=True)
    with Store.open(store_path(config.data_dir, "g000001")) as store:
        create(store, 0, target_of(config))
    shutil.rmtree(config.data_dir)
    shutil.copytree(tmp_path / "long-ago", config.data_dir)
    cut(kafka, kafka.items_topic, 50)
    run_daemon(config, to_end=True)
    assert told(config)[0] == 100
    assert list((config.data_dir / "generations" / "g000001").glob("shard-00000.outdated-*"))
