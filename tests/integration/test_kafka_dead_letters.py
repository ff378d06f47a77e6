"""Dead letters in a topic of a real broker."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from schemas.dead_letters import DeadLetter, Reason
from schemas.errors import BrokerError
from streamer.dead_letters import TopicDeadLetters, read_topic
from streamer.kafka_clients import open_consumer
from tests.kafka.records import produce

if TYPE_CHECKING:
    from schemas.config import KafkaConfig
    from tests.conftest import FreshTopics

pytestmark = pytest.mark.kafka


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
        sink.write(letters[:3])
        sink.write([])
        sink.write(letters[3:])
        assert list(read_topic(config)) == letters  # before close: write returns when they are kept
    assert list(read_topic(config)) == letters


def test_reason_and_source_are_in_headers_and_the_bytes_are_untouched(fresh_topics: FreshTopics) -> None:
    config = fresh_topics()
    with closing(TopicDeadLetters(config)) as sink:
        sink.write([letter(7, value=b"\xff{not json")])
    (record,) = raw_records(config)
    assert (record.key, record.value) == (b"k", b"\xff{not json")
    assert dict(record.headers) == {
        "reason": b"invalid",
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


def test_an_empty_topic_holds_no_letters(fresh_topics: FreshTopics) -> None:
    assert list(read_topic(fresh_topics())) == []


def test_a_missing_topic_is_told_at_once(fresh_topics: FreshTopics) -> None:
    config = fresh_topics().model_copy(update={"dead_letters_topic": "no-such-letters"})
    with pytest.raises(BrokerError, match="no-such-letters"):
        TopicDeadLetters(config)
    with pytest.raises(BrokerError, match="no-such-letters"):
        list(read_topic(config))
