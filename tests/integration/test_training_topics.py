"""Training on a bounded part of the topics: what a log on disk with the same records gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
from kafka import TopicPartition

from schemas.config import Config
from schemas.errors import UsageError
from streamer.cli import app
from streamer.kafka_clients import open_admin
from streamer.training_data import read_training_log
from streamer.training_topics import TopicSpan, read_training_topics
from tests.builders import random_log, write_log
from tests.kafka.records import produce

pytestmark = pytest.mark.kafka


def send(kafka, lines, **options):
    """The partitions of a log into the partitions of the topics, in order."""
    for stream, topic in (("items", kafka.items_topic), ("engagements", kafka.engagements_topic)):
        rows = [
            (int(name[-5:]), None, line)
            for name, records in lines.items()
            if name.startswith(stream)
            for line in records
        ]
        produce(kafka, topic, rows, **options)


def assert_same_log(one, other):
    assert one.item_ids == other.item_ids
    assert one.contents == other.contents
    for name in ("created_at", "user", "item", "time", "kind", "session"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    np.testing.assert_array_equal(one.value, other.value)
    assert (one.users, one.kinds, one.skipped) == (other.users, other.kinds, other.skipped)


def test_topics_give_what_a_log_with_the_same_records_gives(fresh_topics, tmp_path):
    kafka, lines = fresh_topics(1), random_log(5, 3_000, partitions=1)
    send(kafka, lines)
    told: list[int] = []
    found = read_training_topics(TopicSpan(Config(kafka=kafka)), 9_000_000, progress=told.append)
    assert_same_log(found, read_training_log(write_log(tmp_path / "log", lines), until_ms=9_000_000))
    assert sum(told) == sum(map(len, lines.values()))
    assert len(found.time)
    assert found.skipped["after_until"]


def test_many_partitions_are_read_alike_each_time_to_the_end_there_was(fresh_topics):
    kafka, lines = fresh_topics(3), random_log(6, 2_000, partitions=3)
    send(kafka, lines)
    span = TopicSpan(Config(kafka=kafka))
    first = read_training_topics(span)
    assert_same_log(first, read_training_topics(span))
    ends = TopicSpan(Config(kafka=kafka), "earliest", "100")
    cut = read_training_topics(ends)
    send(kafka, random_log(7, 200, partitions=3))
    assert_same_log(cut, read_training_topics(ends))


def test_a_record_without_a_value_deletes_its_item(fresh_topics):
    kafka = fresh_topics(1)
    created = {"type": "item.created", "title": "a film", "occurred_at": 1_000}
    rows = [(0, each.encode(), json.dumps(created | {"item_id": each}).encode()) for each in ("stays", "goes")]
    produce(kafka, kafka.items_topic, [*rows, (0, b"goes", None), (0, b"\xff", None)])
    found = read_training_topics(TopicSpan(Config(kafka=kafka)))
    assert found.item_ids == ("stays",)
    assert found.skipped["deleted_item"] == 1
    assert found.skipped["bad_record"] == 1


def test_a_span_that_ends_before_it_starts_is_refused(fresh_topics):
    kafka = fresh_topics(1)
    send(kafka, random_log(5, 100, partitions=1))
    with pytest.raises(UsageError, match="would start at 5 and stop at 2; give an earlier --from"):
        read_training_topics(TopicSpan(Config(kafka=kafka), "5", "2"))


def test_records_that_are_gone_are_not_asked_for(fresh_topics):
    kafka = fresh_topics(1)
    send(kafka, random_log(5, 100, partitions=1))
    admin = open_admin(kafka)
    admin.delete_records({TopicPartition(kafka.items_topic, 0): 3})
    admin.close()
    with pytest.raises(UsageError, match="would start at 0, but the records before 3 were removed; give --from earl"):
        read_training_topics(TopicSpan(Config(kafka=kafka), "0"))
    assert read_training_topics(TopicSpan(Config(kafka=kafka))).item_ids


def test_the_command_trains_on_topics(fresh_topics, tmp_path, command_line):
    kafka, lines = fresh_topics(1), random_log(5, 2_000, partitions=1)
    send(kafka, lines)
    settings = tmp_path / "facetstream.toml"
    settings.write_text(
        f'[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\nitems_topic = "{kafka.items_topic}"\n'
        f'engagements_topic = "{kafka.engagements_topic}"\n'
    )
    training = tmp_path / "training.toml"
    training.write_text(
        "codewords = 4\ndim = 8\ntoken_dim = 8\nhidden = [8]\nsteps = 3\npairs = 16\nnegatives = 16\nhead = 4\n"
        '[features]\nbuckets = 1024\n[[labels]]\nname = "next"\nkind = "next"\n'
    )
    common = ["train", "--settings", str(training), "--json"]
    asked = [*common, "--config", str(settings), "--out", str(tmp_path / "topics"), "--from", "earliest"]
    done = command_line.invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    log = write_log(tmp_path / "log", lines)
    other = command_line.invoke(
        app, [*common, "--events", str(log), "--out", str(tmp_path / "log-model")], catch_exceptions=False
    )
    assert other.exit_code == 0, other.output
    for file in ("encoder.safetensors", "codebook.safetensors"):
        assert (tmp_path / "topics" / file).read_bytes() == (tmp_path / "log-model" / file).read_bytes()


def test_bounds_of_topics_are_refused_for_a_log(tmp_path, command_line):
    log = write_log(tmp_path / "log", random_log(5, 50, partitions=1))
    asked = ["train", "--events", str(log), "--out", str(tmp_path / "m"), "--from", "earliest"]
    done = command_line.invoke(app, asked)
    assert isinstance(done.exception, UsageError) or done.exit_code == 2
