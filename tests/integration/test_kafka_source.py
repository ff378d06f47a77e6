"""Reading a real broker: exactly what is there, from exactly where it was asked to start."""

from __future__ import annotations

import os
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from schemas.config import Config
from schemas.errors import BrokerError, ConfigError
from streamer import kafka_clients
from streamer.kafka_clients import open_admin, open_producer
from streamer.sources.kafka import KafkaSource
from streamer.sources.kafka_partitions import read_lag, shard_count
from tests.kafka.broker import create_topics
from tests.kafka.records import append, engagements, items, produce, read_to_end, until

if TYPE_CHECKING:
    from schemas.config import KafkaConfig
    from streamer.sources.base import Partition, Records
    from tests.conftest import FreshTopics
    from tests.kafka.records import Row

pytestmark = pytest.mark.kafka


def test_reads_keys_values_and_offsets_of_every_partition_as_they_were_produced(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(partitions=3)
    rows = [(n % 3, b"key-%d" % n, os.urandom(n % 700)) for n in range(5_000)]
    produce(config, config.items_topic, rows)
    produce(config, config.engagements_topic, [(1, None, b"engagement")])
    with closing(KafkaSource(Config(kafka=config))) as source:
        assert source.partitions() == sorted(source.partitions())
        assert [str(p) for p in source.partitions()] == [
            *(f"{config.engagements_topic}-{n}" for n in range(3)),
            *(f"{config.items_topic}-{n}" for n in range(3)),
        ]
        got = read_to_end(source)
    for number in range(3):
        expected = [(key, value) for partition, key, value in rows if partition == number]
        assert got[items(config, number)] == [(at, *row) for at, row in enumerate(expected)]
    assert got[engagements(config, 1)] == [(0, None, b"engagement")]


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_gives_what_was_produced(fresh_topics: FreshTopics, compression: str | None) -> None:
    config = fresh_topics()
    rows = [
        (0, None if n % 7 == 0 else b"k%d" % n, None if n % 5 == 1 and n % 7 else b"v" * (n % 300))
        for n in range(2_000)
    ]
    produce(config, config.items_topic, rows, compression_type=compression)
    with closing(KafkaSource(Config(kafka=config))) as source:
        read = read_to_end(source)
    assert [(0, key, value) for _, key, value in read[items(config)]] == rows


def test_goes_on_exactly_where_it_was_left_also_inside_a_batch(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(partitions=2)
    produce(config, config.items_topic, [(n % 2, b"k", b"%d" % n) for n in range(3_000)])
    whole: dict[Partition, list[Row]] = {}
    positions: dict[Partition, int] = {}
    for size in (1, 7, 500, 1_000, 10_000):
        with closing(KafkaSource(Config(kafka=config))) as source:
            source.seek(positions)
            polled: list[Records] = []
            until(lambda: polled.extend(source.poll(size, 0.2)) or bool(polled), "records")  # noqa: B023
            assert sum(map(len, polled)) <= size
            for records in polled:
                append(whole, records)
                positions[records.partition] = records.next_offset
    assert whole[items(config, 0)] == [(n // 2, b"k", b"%d" % n) for n in range(0, 3_000, 2)]
    assert whole[items(config, 1)] == [(n // 2, b"k", b"%d" % n) for n in range(1, 3_000, 2)]


def test_seek_drops_what_was_fetched_ahead(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    produce(config, config.items_topic, [(0, b"k", b"%d" % n) for n in range(1_000)])
    with closing(KafkaSource(Config(kafka=config))) as source:
        until(lambda: bool(source.poll(10, 0.2)), "records")
        source.seek({items(config): 900})
        assert [at for at, _, _ in read_to_end(source)[items(config)]] == list(range(900, 1_000))


def test_small_polls_share_their_room_among_partitions(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(partitions=2)
    produce(config, config.items_topic, [(0, b"k", b"a")] * 500 + [(1, b"k", b"b")] * 20)
    with closing(KafkaSource(Config(kafka=config))) as source:
        got: list[Records] = []
        until(lambda: got.extend(source.poll(100, 0.2)) or sum(map(len, got)) == 520, "all records")
        with_both = [records for records in got if records.partition.number == 1]
        assert sum(map(len, with_both)) == 20
        assert all(len(records) <= 100 for records in got)


def test_tombstones_and_records_without_key_arrive_as_null(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    produce(config, config.items_topic, [(0, b"gone", None), (0, None, b"x"), (0, b"", b"")])
    with closing(KafkaSource(Config(kafka=config))) as source:
        assert read_to_end(source)[items(config)] == [(0, b"gone", None), (1, None, b"x"), (2, b"", b"")]


def test_transactions_leave_gaps_and_aborted_records_are_not_seen(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    producer = open_producer(config, transactional_id=f"tx-{config.group_id}")
    producer.init_transactions()
    for outcome in ("commit", "abort", "commit", "abort"):
        producer.begin_transaction()
        for n in range(3):
            producer.send(config.items_topic, f"{outcome}-{n}".encode(), b"k", partition=0)
        producer.flush(20)
        producer.commit_transaction() if outcome == "commit" else producer.abort_transaction()
    producer.close()
    with closing(KafkaSource(Config(kafka=config))) as source:
        end = source.end_offsets()[items(config)]
        got = read_to_end(source)[items(config)]  # ends: next_offset must pass the last abort and its marker
    assert [value for _, _, value in got] == [b"commit-0", b"commit-1", b"commit-2"] * 2
    assert [at for at, _, _ in got] == [0, 1, 2, 8, 9, 10]
    assert end == 16


@pytest.mark.slow
def test_compacted_topics_are_read_past_their_gaps_to_the_end(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(
        cleanup_policy="compact", segment_ms="200", min_cleanable_dirty_ratio="0.01", max_compaction_lag_ms="400"
    )
    produce(config, config.items_topic, [(0, b"k%d" % (n % 10), b"%d" % n) for n in range(1_000)])
    end = 1_000

    def compacted() -> bool:
        nonlocal end
        produce(
            config, config.items_topic, [(0, b"nudge", b"x")]
        )  # only closed segments are cleaned, a write closes one
        end += 1
        with closing(KafkaSource(Config(kafka=config))) as source:
            return len(read_to_end(source)[items(config)]) < 100

    until(compacted, "compaction", 60)
    with closing(KafkaSource(Config(kafka=config))) as source:
        got = read_to_end(source)[items(config)]
        assert source.end_offsets()[items(config)] == end
        assert {key: value for _, key, value in got if key != b"nudge"} == {
            b"k%d" % n: b"%d" % (990 + n) for n in range(10)
        }
        source.seek({items(config): 500})  # an offset that compaction removed
        assert read_to_end(source)[items(config)][0][0] == 990


def test_pause_returns_nothing_and_resume_goes_on_without_loss(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(partitions=2)
    produce(config, config.items_topic, [(n % 2, b"k", b"%d" % n) for n in range(2_000)])
    paused, other = items(config, 0), items(config, 1)
    with closing(KafkaSource(Config(kafka=config))) as source:
        got: dict[Partition, list[Row]] = {}

        def read_until(count: int, partition: Partition) -> None:
            def step() -> bool:
                for records in source.poll(100, 0.1):
                    append(got, records)
                return len(got.get(partition, ())) >= count

            until(step, f"{count} records of {partition}")

        read_until(50, paused)
        source.pause([paused])
        held = len(got[paused])
        read_until(1_000, other)
        assert source.poll(100, 0.1) == []
        assert len(got[paused]) == held
        source.resume([paused])
        read_until(1_000, paused)
        assert [value for _, _, value in got[paused]] == [b"%d" % n for n in range(0, 2_000, 2)]


@pytest.mark.parametrize("offset", [11, 10_000])
def test_offset_beyond_the_end_is_refused_and_told(fresh_topics: FreshTopics, offset: int) -> None:
    config = fresh_topics()
    produce(config, config.items_topic, [(0, b"k", b"v")] * 10)
    with (
        closing(KafkaSource(Config(kafka=config))) as source,
        pytest.raises(BrokerError, match=rf"{config.items_topic} partition 0.* {offset},.*holds 0 to 10"),
    ):
        source.seek({items(config): offset})


def test_offset_before_the_oldest_record_is_refused_and_told(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    produce(config, config.items_topic, [(0, b"k", b"v")] * 10)
    delete_before(config, 6)
    with closing(KafkaSource(Config(kafka=config))) as source:
        with pytest.raises(
            BrokerError,
            match=rf"{config.items_topic} partition 0.* 5,.*holds 6 to 10.*--reset {config.items_topic}-0=earliest"
            r'.*kafka\.on_gap = "skip"',
        ):
            source.seek({items(config): 5})
        source.seek({})  # without a stored offset it starts at the oldest record there is
        assert [at for at, _, _ in read_to_end(source)[items(config)]] == [6, 7, 8, 9]


def test_records_removed_while_reading_stop_it_with_the_range_that_is_left(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    with closing(KafkaSource(Config(kafka=config))) as source:
        source.seek({})
        source.pause([items(config)])
        produce(config, config.items_topic, [(0, b"k", b"v")] * 10)
        delete_before(config, 8)
        source.resume([items(config)])
        with pytest.raises(BrokerError, match=r"next offset to read is 0, .*holds 8 to 10"):
            until(lambda: bool(source.poll(10, 0.2)), "records that must not come")


def test_a_gap_before_the_start_is_counted_with_the_first_records_when_it_may_be(fresh_topics: FreshTopics) -> None:
    config = fresh_topics().model_copy(update={"on_gap": "skip"})
    produce(config, config.items_topic, [(0, b"k", b"v")] * 10)
    delete_before(config, 6)
    with closing(KafkaSource(Config(kafka=config))) as source:
        with pytest.raises(BrokerError, match=r"next offset to read is 11,.*created anew"):
            source.seek({items(config): 11})  # no gap: these records never were in this topic
        source.seek({items(config): 4})
        polled = read_records(source, 10)
    assert [records.lost for records in polled if len(records)] == [0]
    assert [(records.lost, records.next_offset) for records in polled if records.lost] == [(2, 6)]
    assert [at for records in polled for at in records.offsets] == [6, 7, 8, 9]


def test_a_gap_at_the_end_of_the_topic_is_counted_without_a_record(fresh_topics: FreshTopics) -> None:
    config = fresh_topics().model_copy(update={"on_gap": "skip"})
    produce(config, config.items_topic, [(0, b"k", b"v")] * 10)
    delete_before(config, 10)
    with closing(KafkaSource(Config(kafka=config))) as source:
        source.seek({items(config): 7})
        polled = read_records(source, 10)
    assert [(len(records), records.lost, records.next_offset) for records in polled] == [(0, 3, 10)]


def test_a_gap_made_while_reading_is_counted_and_what_was_fetched_before_is_not_lost(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(partitions=2).model_copy(update={"on_gap": "skip", "fetch_max_bytes": 1 << 16})
    first, other = items(config, 0), items(config, 1)
    value = os.urandom(4_000)  # a fetch holds but a few
    produce(config, config.items_topic, [(0, b"k", value)] * 100 + [(1, b"k", b"v")] * 10)
    got: list[Records] = []

    def read_on() -> bool:
        got.extend(source.poll(3, 0.2))
        return bool(got)

    with closing(KafkaSource(Config(kafka=config))) as source:
        source.seek({})
        until(lambda: read_on() and any(records.partition == first for records in got), "the first records")
        source.pause([first])  # some of it is held, and some fetched in the background
        delete_before(config, 90)
        until(lambda: read_on() and sum(len(r) for r in got if r.partition == other) == 10, "the other's")
        source.resume([first])
        until(lambda: read_on() and any(records.next_offset == 100 for records in got), "the end")
    mine = [records for records in got if records.partition == first]
    offsets = [at for records in mine for at in records.offsets]
    assert offsets == sorted(set(offsets))
    assert offsets[-10:] == list(range(90, 100))
    assert sum(records.lost for records in mine) == 100 - len(offsets) > 0
    assert len([records for records in mine if records.lost]) == 1
    assert all(before.next_offset <= after.next_offset for before, after in pairwise(mine))


def test_a_shard_reads_its_partition_of_each_topic(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(partitions=3)
    produce(config, config.items_topic, [(n, b"k", b"item-%d" % n) for n in range(3)])
    produce(config, config.engagements_topic, [(n, b"k", b"engagement-%d" % n) for n in range(3)])
    for shard in range(3):
        with closing(KafkaSource(Config(kafka=config), shard)) as source:
            assert source.partitions() == [engagements(config, shard), items(config, shard)]
            assert read_to_end(source) == {
                items(config, shard): [(0, b"k", b"item-%d" % shard)],
                engagements(config, shard): [(0, b"k", b"engagement-%d" % shard)],
            }
    with pytest.raises(BrokerError, match=rf"{config.items_topic}.* has 3 partitions, none of shard 3"):
        KafkaSource(Config(kafka=config), 3)


def test_there_are_as_many_shards_as_partitions_if_both_topics_agree(fresh_topics: FreshTopics) -> None:
    assert shard_count(Config(kafka=fresh_topics(partitions=3))) == 3
    config = fresh_topics(partitions=3, engagement_partitions=2)
    with pytest.raises(
        ConfigError, match=rf"{config.items_topic}' has 3.*{config.engagements_topic}' has 2.*co-partitioned"
    ):
        shard_count(Config(kafka=config))


def test_a_topic_created_anew_has_another_identity(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    with closing(KafkaSource(Config(kafka=config))) as source:
        before = source.identity()
    assert before["kind"] == "kafka"
    assert {name: before[name].split()[0] for name in ("items", "engagements")} == {
        "items": config.items_topic,
        "engagements": config.engagements_topic,
    }
    with closing(open_admin(config)) as admin:
        admin.delete_topics([config.items_topic])
    create_topics(config.bootstrap_servers, {config.items_topic: 1}, retention_ms="-1")
    with closing(KafkaSource(Config(kafka=config), 0)) as source:
        after = source.identity()
    assert after["engagements"] == before["engagements"]
    assert after["items"].split()[0] == before["items"].split()[0]
    assert after["items"] != before["items"]


def test_position_of_a_partition_that_does_not_exist_is_refused(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    with (
        closing(KafkaSource(Config(kafka=config))) as source,
        pytest.raises(BrokerError, match=f"{config.items_topic}-7"),
    ):
        source.seek({items(config, 7): 3})


def test_missing_topic_is_named_with_the_command_that_makes_it_and_not_created(fresh_topics: FreshTopics) -> None:
    config = fresh_topics().model_copy(update={"items_topic": "no-such-topic"})
    with pytest.raises(
        BrokerError, match=r"no topic 'no-such-topic'.*kafka-topics.sh .*--create --topic no-such-topic"
    ):
        KafkaSource(Config(kafka=config))
    with pytest.raises(BrokerError, match="no-such-topic"):
        read_lag(Config(kafka=config))
    admin = open_admin(config)
    try:
        assert "no-such-topic" not in admin.list_topics()
    finally:
        admin.close()


def test_one_topic_for_both_streams_is_refused(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    with pytest.raises(ConfigError, match=r"items_topic and .*engagements_topic"):
        KafkaSource(Config(kafka=config.model_copy(update={"engagements_topic": config.items_topic})))


def test_a_topic_deleted_while_it_is_read_is_logged_and_not_made_again_by_reading(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    produce(config, config.items_topic, [(0, b"k", b"old")] * 10)
    admin = open_admin(config)
    with closing(admin), closing(KafkaSource(Config(kafka=config))) as source, capture_logs() as logs:
        read_to_end(source)
        admin.delete_topics([config.items_topic])
        until(lambda: source.poll(10, 0.2) == [] and bool(logs), "the log of it")
        assert [(log["event"], log["topic"]) for log in logs] == [("kafka_topic_is_away", config.items_topic)]
        assert config.items_topic not in admin.list_topics()


def test_a_topic_created_anew_is_not_taken_for_the_old_one(
    fresh_topics: FreshTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_clients, "METADATA_AGE_MS", 200)
    config = fresh_topics()
    produce(config, config.items_topic, [(0, b"k", b"old")] * 10)
    with closing(KafkaSource(Config(kafka=config))) as source:
        read_to_end(source)
        with closing(open_admin(config)) as admin:
            admin.delete_topics([config.items_topic])
        create_topics(config.bootstrap_servers, {config.items_topic: 1}, retention_ms="-1")
        produce(config, config.items_topic, [(0, b"k", b"new")] * 20)
        with pytest.raises(BrokerError, match=rf"{config.items_topic}.* created anew while it was read"):
            until(lambda: source.poll(10, 0.2) is None, "it to be noticed")


def test_close_is_idempotent(fresh_topics: FreshTopics) -> None:
    source = KafkaSource(Config(kafka=fresh_topics()))
    source.close()
    source.close()


def read_records(source: KafkaSource, end: int) -> list[Records]:
    """What is returned of the items partition until ``end`` is reached."""
    polled: list[Records] = []
    until(
        lambda: polled.extend(source.poll(1_000, 0.2)) or any(records.next_offset == end for records in polled),
        f"offset {end}",
    )
    return polled


def delete_before(config: KafkaConfig, offset: int) -> None:
    from kafka import TopicPartition

    admin = open_admin(config)
    try:
        admin.delete_records({TopicPartition(config.items_topic, 0): offset})
    finally:
        admin.close()
