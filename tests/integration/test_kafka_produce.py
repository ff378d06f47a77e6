"""An event log through the broker and back."""

from __future__ import annotations

import gzip
import json
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from schemas.config import Config
from schemas.errors import BrokerError, ConfigError, UsageError
from streamer.kafka_clients import open_consumer
from streamer.produce import produce_event_log
from streamer.sources.kafka import KafkaSource
from tests.kafka.records import engagements, items, read_to_end

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.config import KafkaConfig
    from tests.conftest import FreshTopics

pytestmark = pytest.mark.kafka

START_MS = 1_500_000_000_000


def item(number: int, at: int | str | None = None) -> bytes:
    when = START_MS + 1_000 * number if at is None else at
    return json.dumps(
        {"type": "item.created", "item_id": f"i{number}", "occurred_at": when, "title": "ö" * 20}
    ).encode()


def engagement(number: int, at: int | None = None) -> bytes:
    when = START_MS + 1_000 * number + 500 if at is None else at
    return json.dumps(
        {"type": "engagement", "user_id": "u", "item_id": f"i{number}", "kind": "click", "occurred_at": when}
    ).encode()


def write(folder: Path, **files: list[bytes]) -> Path:
    for name, lines in files.items():
        (folder / f"{name.replace('_', '-')}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return folder


def consumed(config: KafkaConfig, topic: str) -> list[Any]:
    """All records of a topic with timestamps, by partition and offset."""
    from kafka import TopicPartition

    with closing(open_consumer(config)) as consumer:
        keys = [TopicPartition(topic, n) for n in range(len(consumer.partitions_for_topic(topic)))]
        consumer.assign(keys)
        ends = consumer.end_offsets(keys)
        for key in keys:
            consumer.seek(key, 0)
        records: list[Any] = []
        while any(consumer.position(key) < end for key, end in ends.items()):
            records += [record for found in consumer.poll(20_000).values() for record in found]
    return sorted(records, key=lambda record: (record.partition, record.offset))


def test_every_line_arrives_unchanged_and_in_order_within_its_partition(
    fresh_topics: FreshTopics, tmp_path: Path
) -> None:
    config = fresh_topics(partitions=3)
    created = [item(n) for n in range(2_000)]
    clicks = [engagement(n % 2_000, START_MS + 10 * n) for n in range(5_000)]
    told: list[int] = []
    log = write(tmp_path, items=created, engagements=clicks)
    counts = produce_event_log(log, Config(kafka=config), progress=told.append)
    assert (counts.items, counts.engagements, counts.without_key) == (2_000, 5_000, 0)
    assert sum(told) == 7_000
    with closing(KafkaSource(Config(kafka=config))) as source:
        got = read_to_end(source)
    for lines, at in ((created, items), (clicks, engagements)):
        by_partition = [[value for _, _, value in got[at(config, number)]] for number in range(3)]
        assert sorted(value for values in by_partition for value in values) == sorted(lines)
        for values in by_partition:
            of_partition = set(values)
            assert values == [line for line in lines if line in of_partition]
        for rows in got.values():
            assert all(key == json.loads(value)["item_id"].encode() for _, key, value in rows)


def test_an_item_and_its_engagements_have_the_same_partition_number(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics(partitions=4)
    log = write(tmp_path, items=[item(n) for n in range(300)], engagements=[engagement(n) for n in range(300)])
    produce_event_log(log, Config(kafka=config))
    home = {record.key: record.partition for record in consumed(config, config.items_topic)}
    assert len(set(home.values())) == 4
    assert all(home[record.key] == record.partition for record in consumed(config, config.engagements_topic))


def test_the_partition_is_the_one_that_other_clients_choose(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    from streamer.kafka_clients import open_producer

    config = fresh_topics(partitions=5)
    produce_event_log(write(tmp_path, items=[item(n) for n in range(100)]), Config(kafka=config))
    ours = {record.key: record.partition for record in consumed(config, config.items_topic)}
    with closing(open_producer(config)) as producer:
        theirs = {key: producer.send(config.engagements_topic, b"", key).get(20).partition for key in ours}
    assert theirs == ours


def test_several_files_become_one_stream_in_the_order_of_their_times(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics()
    write(tmp_path, items_00000=[item(n) for n in (0, 2, 4)], items_00001=[item(n) for n in (1, 3, 5)])
    write(tmp_path, engagements=[engagement(n) for n in range(6)])
    produce_event_log(tmp_path, Config(kafka=config))
    sent = [json.loads(record.value)["item_id"] for record in consumed(config, config.items_topic)]
    assert sent == [f"i{n}" for n in range(6)]


def test_the_timestamp_is_the_events_unless_it_lies_in_the_future(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics()
    future = int(time.time() * 1000) + 10 * 86_400_000
    lines = [item(0), item(1, "2017-10-01T03:00:00Z"), item(2, future), item(3), b"no json"]
    produce_event_log(write(tmp_path, items=lines), Config(kafka=config))
    stamps = [record.timestamp for record in consumed(config, config.items_topic)]
    assert stamps[:2] == [START_MS, 1_506_826_800_000]
    assert stamps[2] < future
    assert stamps[3] == START_MS + 3_000
    assert stamps[4] == 1_506_826_800_000  # the latest time before it


def test_lines_without_a_usable_id_are_sent_for_the_daemon_to_judge(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics(partitions=2)
    lines = [
        b"",
        b"{",
        b"[1]",
        b'"x"',
        b"\xff\xfe",
        b'{"item_id": 7}',
        b'{"item_id": ""}',
        b'{"item_id": "x", "occurred_at": "?"}',
    ]
    counts = produce_event_log(write(tmp_path, items=lines), Config(kafka=config))
    assert (counts.items, counts.without_key) == (8, 7)
    records = consumed(config, config.items_topic)
    assert sorted(record.value for record in records) == sorted(lines)
    assert [record.key for record in records if record.key is not None] == [b"x"]


def test_compressed_logs_are_read_too(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics()
    (tmp_path / "items.jsonl.gz").write_bytes(gzip.compress(item(0) + b"\n" + item(1) + b"\n"))
    assert produce_event_log(tmp_path, Config(kafka=config)).items == 2
    assert [record.value for record in consumed(config, config.items_topic)] == [item(0), item(1)]


def test_the_rate_is_not_exceeded(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics()
    counts = produce_event_log(write(tmp_path, items=[item(n) for n in range(201)]), Config(kafka=config), rate=400)
    assert counts.seconds >= 0.5  # 200 intervals of 2.5 ms: never faster, whatever else the machine does


def test_topics_of_different_sizes_are_refused(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics(partitions=2, engagement_partitions=3)
    with pytest.raises(ConfigError, match=rf"{config.items_topic} has 2, {config.engagements_topic} has 3"):
        produce_event_log(write(tmp_path, items=[item(0)]), Config(kafka=config))


def test_topics_that_would_delete_the_events_for_their_age_are_refused(
    fresh_topics: FreshTopics, tmp_path: Path
) -> None:
    config = fresh_topics(retention_ms="604800000")
    with pytest.raises(ConfigError, match=r"7 days .*retention.ms=-1"):
        produce_event_log(write(tmp_path, items=[item(0)]), Config(kafka=config))
    assert consumed(config, config.items_topic) == []


def test_a_line_that_the_topic_does_not_take_is_named(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics(max_message_bytes="50000", compression_type="uncompressed")
    lines = [item(0), item(1), b"%d" % 7 + bytes(range(32, 127)) * 2_000, item(3)]
    with pytest.raises(BrokerError, match=r"line 3 of .*items\.jsonl \(190001 bytes\).*MessageSizeTooLarge"):
        produce_event_log(write(tmp_path, items=lines), Config(kafka=config))


def test_no_log_and_no_topic_are_told(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics()
    with pytest.raises(UsageError):
        produce_event_log(tmp_path / "none", Config(kafka=config))
    with pytest.raises(UsageError, match="rate is 0"):
        produce_event_log(tmp_path, Config(kafka=config), rate=0)
    write(tmp_path, items=[item(0)])
    with pytest.raises(BrokerError, match="no-such-topic"):
        produce_event_log(tmp_path, Config(kafka=config.model_copy(update={"engagements_topic": "no-such-topic"})))
