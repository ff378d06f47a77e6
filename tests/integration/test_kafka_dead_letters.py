"""Dead letters in a topic of a real broker."""

from __future__ import annotations

import json
import random
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from kafka.errors import KafkaError
from structlog.testing import capture_logs

from indexer.store import Store, store_path
from schemas.config import Config
from schemas.dead_letters import DeadLetter, Reason
from schemas.errors import BrokerError, FencedError
from streamer.dead_letters import FileDeadLetters, TopicDeadLetters, read_file, read_topic
from streamer.generations import open_index
from streamer.kafka_clients import flush, open_admin, open_consumer, open_producer, topic_settings
from streamer.pipeline import Pipeline
from streamer.reader import Span
from tests.builders import tiny_model
from tests.kafka.records import produce, until
from tests.scripted_source import ENGAGEMENTS, ITEMS, Scripted, ScriptedSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kafka import KafkaProducer

    from schemas.config import KafkaConfig
    from tests.conftest import FreshTopics

pytestmark = pytest.mark.kafka

NO_LETTER = 100  # bytes: fewer than any letter has, and more than the marker that ends a transaction


def letter(offset: int, key: bytes | None = b"k", value: bytes | None = b"v", detail: str = "d") -> DeadLetter:
    return DeadLetter(
        reason=Reason.INVALID,
        detail=detail,
        topic="items",
        partition=3,
        offset=offset,
        failed_at_ms=1_700,
        key=key,
        value=value,
    )


def raw_records(config: KafkaConfig) -> list:
    from kafka import TopicPartition

    with closing(open_consumer(config)) as consumer:
        consumer.assign([TopicPartition(config.dead_letters_topic, 0)])
        consumer.seek(TopicPartition(config.dead_letters_topic, 0), 0)
        return [record for records in consumer.poll(20_000).values() for record in records]


def test_letters_come_back_as_they_went_in(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    letters = [
        letter(0),
        letter(1, key=None),
        letter(2, value=None),  # a tombstone
        letter(3, key=None, value=None),
        letter(4, key=b"", value=b""),
        letter(5, value=bytes(range(256)), detail="ünïcode, 'quotes' and\nlines"),
        *(letter(n, key=b"k%d" % n, value=b"x" * 1_000) for n in range(6, 500)),
    ]
    with closing(TopicDeadLetters(config)) as sink:
        assert sink.position is None
        sink.restore(None)
        assert sink.position == 0
        sink.write(letters[:3])
        assert sink.position == 3
        sink.write([])
        sink.write(letters[3:])
        assert sink.position == 501  # the marker of the first transaction lies between
        assert list(read_topic(config)) == letters  # before close: write returns when they are kept
    assert list(read_topic(config)) == letters


def test_reason_and_source_are_in_headers_and_the_bytes_are_untouched(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    with closing(TopicDeadLetters(config)) as sink:
        sink.write([letter(7, value=b"\xff{not json").model_copy(update={"error": "ValidationError"})])
    (record,) = raw_records(config)
    assert (record.key, record.value) == (b"k", b"\xff{not json")
    assert dict(record.headers) == {
        "reason": b"invalid",
        "error-class": b"ValidationError",
        "detail": b"d",
        "source-topic": b"items",
        "source-partition": b"3",
        "source-offset": b"7",
        "failed-at-ms": b"1700",
    }


def test_a_value_the_topic_does_not_take_is_cut_and_says_so(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(max_message_bytes="100000")
    big = b"x" * 3_000_000
    with closing(TopicDeadLetters(config)) as sink:
        sink.write([letter(0), letter(1, value=big), letter(2)])
    found = {each.offset: each for each in read_topic(config)}
    assert found[0] == letter(0)
    assert found[2] == letter(2)
    assert 90_000 < len(found[1].value or b"") < 100_000
    assert big.startswith(found[1].value or b"")
    assert "value cut from 3000000 to " in found[1].detail


def test_records_that_are_no_letters_are_named_and_passed_over(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    produce(config, config.dead_letters_topic, [(0, b"k", b"somebody else's")])
    with closing(TopicDeadLetters(config)) as sink:
        sink.write([letter(1)])
    with capture_logs() as logs:
        assert list(read_topic(config)) == [letter(1)]
    assert [(log["event"], log["offset"]) for log in logs] == [("dead_letter_damaged", 0)]


@pytest.mark.parametrize("cuts", [(1, 2, 2), (5,), (4, 1), (1, 3, 1)])
def test_a_crash_between_letters_and_store_sends_none_of_them_twice(
    fresh_topics: FreshTopics, cuts: tuple[int, ...]
) -> None:
    config = fresh_topics()
    letters = [letter(offset) for offset in range(7)]
    with closing(TopicDeadLetters(config, shard=3)) as sink:
        sink.restore(None)
        sink.write(letters[:2])
        stored = sink.position
        sink.write(letters[2:5])  # and killed before the store has the new position
    at = 2
    for size in cuts:  # the records come in other batches than before
        for _ in range(2):  # the first is killed too
            with closing(TopicDeadLetters(config, shard=3)) as sink:
                sink.restore(stored)
                sink.write(letters[at : at + size])
                position = sink.position
        at, stored = at + size, position
    assert list(read_topic(config)) == letters[: max(5, at)]


def test_shards_that_share_a_partition_do_not_take_each_others_letters_for_theirs(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    mine = [letter(offset) for offset in range(3)]
    others = [each.model_copy(update={"partition": 4}) for each in mine]
    with closing(TopicDeadLetters(config, shard=3)) as sink, closing(TopicDeadLetters(config, shard=4)) as other:
        sink.restore(None)
        other.restore(None)
        sink.write(mine[:1])
        other.write(others)
        sink.write(mine[1:])
        assert (sink.position, other.position) == (8, 5)  # markers too
    with closing(TopicDeadLetters(config, shard=4)) as other:
        other.restore(0)
        other.write(others)
    assert list(read_topic(config)) == mine[:1] + others + mine[1:]


def test_an_index_built_anew_from_the_topics_sends_no_letter_again(fresh_topics: FreshTopics) -> None:
    config = fresh_topics(max_message_bytes="100000")
    letters = [letter(0), letter(1, key=None, value=None), letter(2, value=b"x" * 200_000)]
    for _ in range(2):
        with closing(TopicDeadLetters(config, shard=3)) as sink:
            sink.restore(None)
            sink.write(letters)
            assert sink.position == 3
    assert [found.offset for found in read_topic(config)] == [0, 1, 2]


def test_a_letter_of_another_record_at_the_same_place_is_another_letter(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    for value in (b"of a topic that was deleted", b"of the new one"):
        with closing(TopicDeadLetters(config, shard=3)) as sink:
            sink.restore(None)
            sink.write([letter(0, value=value)])
    assert [found.value for found in read_topic(config)] == [b"of a topic that was deleted", b"of the new one"]


def test_a_position_beyond_the_topic_is_told_and_searched_from_the_beginning(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    with closing(TopicDeadLetters(config, shard=3)) as sink:
        sink.write([letter(0)])
        with capture_logs() as logs:
            sink.restore(900)
        sink.write([letter(0), letter(1)])
        assert sink.position == 3
    assert [log["event"] for log in logs] == ["dead_letter_topic_shrank", "dead_letters_found"]
    assert [found.offset for found in read_topic(config)] == [0, 1]


def test_a_sink_goes_on_after_a_refusal(fresh_topics: FreshTopics) -> None:
    config = fresh_topics().model_copy(update={"request_timeout_s": 1.0})
    with closing(TopicDeadLetters(config, shard=3)) as sink:
        sink.restore(None)
        sink.write([letter(0)])
        limit_records(config, NO_LETTER)
        with capture_logs() as logs, pytest.raises(BrokerError, match="dead letter"):
            sink.write([letter(1)])
        assert sink.position == 1
        limit_records(config, 1_000_000)
        sink.write([letter(1)])
    assert [log["event"] for log in logs].count("dead_letters_sent_again") == 1
    assert [found.offset for found in read_topic(config)] == [0, 1]


def limit_records(config: KafkaConfig, most_bytes: int) -> None:
    """What the topic takes. The broker applies it within moments."""
    from kafka.admin import ConfigResource, ConfigResourceType

    with closing(open_admin(config)) as admin:
        wanted = {"max.message.bytes": str(most_bytes)}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, config.dead_letters_topic, wanted)])
        until(lambda: topic_settings(admin, config.dead_letters_topic, list(wanted)) == wanted, "the new setting")


def item(offset: int, *, good: bool, at: int = 0) -> Scripted:
    event = {"type": "item.created", "item_id": f"i{offset}", "occurred_at": at, "title": "word" if good else ""}
    return Scripted(offset, json.dumps(event).encode())


def test_where_letters_cannot_be_written_the_pipeline_stops_and_loses_nothing(
    fresh_topics: FreshTopics, tmp_path: Path
) -> None:
    kafka = fresh_topics().model_copy(update={"request_timeout_s": 1.0})
    config = Config.model_validate(
        {"data_dir": tmp_path, "kafka": kafka, "writer": {"batch_records": 16}, "rebalance": {"low": 2, "high": 8}}
    )
    model = tiny_model()
    records = [item(offset, good=offset % 10 != 7) for offset in range(100)]

    def run() -> dict[str, int]:
        with open_index(config, model) as index, closing(TopicDeadLetters(kafka)) as sink:
            try:
                source = ScriptedSource({ITEMS: records, ENGAGEMENTS: []})
                Pipeline(index, source, sink, model, config, span=Span(to_end=True)).run()
            finally:
                positions = dict(index.view.positions)
            assert index.view.totals.dead_letters == 10
            assert index.view.totals.dead_letter_position == sink.position
        return positions

    limit_records(kafka, NO_LETTER)
    with pytest.raises(BrokerError, match=f"dead letter.*{kafka.dead_letters_topic}"):
        run()
    with Store.open(store_path(tmp_path, "g000001")) as store:
        assert store.offsets().get("items-0", 0) <= 7
        assert store.totals().dead_letters == 0
    limit_records(kafka, 1_000_000)
    assert run() == {"items-0": 100}
    assert [found.offset for found in read_topic(kafka)] == list(range(7, 100, 10))


class PowerCutError(Exception):
    """Stands for the moment at which a process dies."""


class DyingSink(TopicDeadLetters):
    """Dies between making dead letters durable and the batch they belong to."""

    writes_left = 0

    def write(self, letters: Sequence[DeadLetter]) -> None:
        super().write(letters)
        self.writes_left -= 1
        if self.writes_left < 0:
            raise PowerCutError


def test_whenever_the_process_dies_each_letter_is_there_once(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    """Among them engagements that waited in vain, whose offsets were passed long before."""
    kafka = fresh_topics()
    sections = {"pending": {"max_age_s": 1}, "kafka": kafka, "rebalance": {"low": 2, "high": 8}}
    model = tiny_model()
    items = [item(offset, good=offset % 10 != 7, at=100 * offset) for offset in range(200)]
    event = {"type": "engagement", "user_id": "u", "kind": "click"}
    clicks = [
        Scripted(offset, json.dumps(event | {"item_id": f"never {offset}", "occurred_at": 200 * offset}).encode())
        for offset in range(100)
    ]
    rng = random.Random(3)
    for _ in range(40):
        config = Config.model_validate(
            {"data_dir": tmp_path, "writer": {"batch_records": rng.choice([3, 16, 50])}} | sections
        )
        with open_index(config, model) as index, closing(DyingSink(kafka)) as sink:
            sink.writes_left = rng.randint(0, 6)
            source = ScriptedSource({ITEMS: items, ENGAGEMENTS: clicks})
            try:
                Pipeline(index, source, sink, model, config, span=Span(to_end=True)).run()
            except PowerCutError:
                continue
            letters, waiting = index.view.totals.dead_letters, len(index.pending)
            break
    else:
        pytest.fail("it never came to the end")
    found = [(each.topic, each.offset, each.reason, each.error) for each in read_topic(kafka)]
    bad = [("items", offset, Reason.INVALID, "ValidationError") for offset in range(7, 200, 10)]
    vain = [("engagements", offset, Reason.ITEM_NEVER_CAME, "Expired") for offset in range(100 - waiting)]
    assert sorted(found) == sorted(bad + vain)
    assert letters == len(found) > 100


def transactional(config: KafkaConfig, shard: int, timeout_ms: int = 3_000) -> KafkaProducer:
    """A producer as a sink of the shard has, with a transaction begun; its own end is for whoever calls."""
    name = f"{config.group_id}-deadletters-{shard}"
    producer = open_producer(config, transactional_id=name, transaction_timeout_ms=timeout_ms)
    producer.init_transactions()
    producer.begin_transaction()
    return producer


def test_the_end_of_a_transaction_alone_is_no_letter_and_no_silence(fresh_topics: FreshTopics) -> None:
    config = fresh_topics().model_copy(update={"request_timeout_s": 5.0})
    for _ in range(2):
        with closing(TopicDeadLetters(config, shard=3)) as sink, capture_logs() as logs:
            sink.restore(None)
            sink.write([letter(0)])
            sink.restore(sink.position)
            assert sink.position == 2  # behind the marker
        with closing(TopicDeadLetters(config, shard=3)) as sink:
            sink.restore(1)
            sink.restore(2)
        assert list(read_topic(config)) == [letter(0)]
    assert [log["event"] for log in logs] == ["dead_letters_found"]


def test_aborted_letters_at_the_end_are_not_waited_for(fresh_topics: FreshTopics) -> None:
    config = fresh_topics().model_copy(update={"request_timeout_s": 5.0})
    with closing(TopicDeadLetters(config, shard=3)) as sink:
        sink.write([letter(0)])
    with closing(transactional(config, 4)) as other:
        other.send(config.dead_letters_topic, b"never", partition=0)
        other.flush()
        other.abort_transaction()
    assert list(read_topic(config)) == [letter(0)]
    with closing(TopicDeadLetters(config, shard=3)) as sink:
        sink.restore(None)
        sink.write([letter(0)])
    assert list(read_topic(config)) == [letter(0)]


def test_who_was_replaced_is_refused_and_nobody_sees_what_it_had_on_its_way(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    with closing(TopicDeadLetters(config, shard=3)) as older:
        older.write([letter(0)])
        with closing(TopicDeadLetters(config, shard=3)) as newer:
            newer.restore(older.position)
            for _ in range(2):  # it does not take the place back
                with pytest.raises(FencedError, match="another process writes the dead letters of shard 3"):
                    older.write([letter(1, value=b"of a zombie")])
            newer.write([letter(1)])
    assert list(read_topic(config)) == [letter(0), letter(1)]


def test_what_a_process_had_sent_when_it_was_replaced_is_seen_by_nobody(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    with closing(transactional(config, 3)) as frozen:
        frozen.send(config.dead_letters_topic, b"on its way", partition=0)
        frozen.flush()
        with closing(TopicDeadLetters(config, shard=3)) as newer:
            newer.restore(None)
            newer.write([letter(0)])
        with pytest.raises(KafkaError):
            frozen.commit_transaction()
    with capture_logs() as logs:
        assert list(read_topic(config)) == [letter(0)]
    assert not logs


def test_letters_behind_the_open_transaction_of_a_dead_process_are_found(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    with closing(transactional(config, 4, 10_000)) as dead:
        dead.send(config.dead_letters_topic, b"of another shard", partition=0)
        dead.flush()
        with closing(TopicDeadLetters(config, shard=3)) as sink:
            sink.write([letter(0)])
        assert list(read_topic(config)) == []
        with closing(TopicDeadLetters(config, shard=3)) as sink, capture_logs() as logs:
            sink.restore(None)
            sink.write([letter(0), letter(1)])
    assert [log["event"] for log in logs] == ["dead_letters_in_transaction", "dead_letters_found"]
    assert list(read_topic(config)) == [letter(0), letter(1)]


def test_a_transaction_that_took_too_long_is_no_rival_and_done_again(
    fresh_topics: FreshTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fresh_topics()
    monkeypatch.setattr("streamer.dead_letter_topic.TRANSACTION_S", 3.0)
    delays = [8.0]

    def slow_flush(producer: KafkaProducer, timeout_s: float) -> None:
        flush(producer, timeout_s)
        time.sleep(delays.pop() if delays else 0)

    monkeypatch.setattr("streamer.dead_letter_topic.flush", slow_flush)
    with closing(TopicDeadLetters(config, shard=3)) as sink, capture_logs() as logs:
        sink.restore(None)
        sink.write([letter(0)])
    assert [log["event"] for log in logs] == ["dead_letters_sent_again"]
    assert list(read_topic(config)) == [letter(0)]


def test_very_many_letters_are_written_in_portions_each_once(
    fresh_topics: FreshTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fresh_topics()
    monkeypatch.setattr("streamer.dead_letter_records._CHUNK_RECORDS", 30)
    letters = [letter(offset) for offset in range(100)]
    with closing(DyingSink(config, shard=3)) as sink:
        sink.restore(None)
        with pytest.raises(PowerCutError):
            sink.write(letters[:60])
    with closing(TopicDeadLetters(config, shard=3)) as sink:
        sink.restore(None)
        sink.write(letters)
    assert list(read_topic(config)) == letters
    with closing(FileDeadLetters(tmp_path / "letters.jsonl")) as file:
        file.write(letters)
        assert file.position == file.path.stat().st_size
        file.write(letters[:1])
    assert list(read_file(tmp_path / "letters.jsonl")) == [*letters, letters[0]]


def test_an_empty_topic_holds_no_letters(fresh_topics: FreshTopics) -> None:
    assert list(read_topic(fresh_topics())) == []


def test_a_missing_topic_is_told_at_once(fresh_topics: FreshTopics) -> None:
    config = fresh_topics().model_copy(update={"dead_letters_topic": "no-such-letters"})
    with pytest.raises(BrokerError, match="no-such-letters"):
        TopicDeadLetters(config)
    with pytest.raises(BrokerError, match="no-such-letters"):
        list(read_topic(config))
