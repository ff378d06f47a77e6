"""Dead letters sent to their topics again, and shown, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from schemas.config import Config
from schemas.dead_letters import DeadLetter, Reason
from schemas.errors import BrokerError, StoreError
from streamer.dead_letter_replay import replay_letters
from streamer.dead_letters import TopicDeadLetters, read_topic
from streamer.kafka_clients import open_consumer
from tests.kafka.records import produce

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.config import KafkaConfig
    from tests.conftest import FreshTopics

pytestmark = pytest.mark.kafka


def letter(config: KafkaConfig, offset: int, **changes: object) -> DeadLetter:
    whole: dict[str, Any] = {
        "reason": Reason.INVALID,
        "detail": "d",
        "topic": config.engagements_topic,
        "partition": 1,
        "offset": offset,
        "failed_at_ms": 5,
        "key": b"k%d" % offset,
        "value": b"\xff%d" % offset,
    }
    return DeadLetter.model_validate(whole | changes)


def records(
    config: KafkaConfig, topic: str, partition: int
) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
    from kafka import TopicPartition

    with closing(open_consumer(config)) as consumer:
        key = TopicPartition(topic, partition)
        consumer.assign([key])
        consumer.seek(key, 0)
        end, found = consumer.end_offsets([key])[key], []
        while consumer.position(key) < end:
            found += [record for rows in consumer.poll(1_000).values() for record in rows]
        return [(record.key, record.value, dict(record.headers)) for record in found]


def test_records_go_back_to_their_partition_once(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config, noted = fresh_topics(partitions=2), tmp_path / "noted.jsonl"
    letters = [letter(config, offset) for offset in range(250)] + [letter(config, 250, value=None)]
    assert replay_letters(letters, config, noted, dry_run=True).sent == 251
    assert not noted.exists()
    assert replay_letters(letters, config, noted, limit=10).sent == 10
    done = replay_letters(letters, config, noted)
    assert (done.sent, dict(done.passed_over)) == (241, {"sent before": 10})
    assert replay_letters(letters, config, noted).sent == 0
    name = config.engagements_topic
    assert records(config, name, 1) == [
        (each.key, each.value, {"replayed-from": f"{name}-1@{each.offset}".encode()}) for each in letters
    ]


def test_what_cannot_go_back_is_counted_with_the_reason(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics(partitions=2, max_message_bytes="100000")
    letters = [
        letter(config, 0, topic="somebody-elses"),
        letter(config, 0, partition=2),
        letter(config, 1, key=None, value=None),
        letter(config, 2),
    ]
    with closing(TopicDeadLetters(config)) as sink:
        sink.write([*letters, letter(config, 3, value=b"x" * 500_000)])
    done = replay_letters(read_topic(config), config, tmp_path / "noted.jsonl")
    assert done.sent == 1
    assert dict(done.passed_over) == {
        "of a topic that [kafka] does not name": 1,
        "of a partition that the topic does not have": 1,
        "has neither key nor value": 1,
        "value was cut: it is whole at its source only": 1,
    }


def test_a_letter_that_the_broker_refuses_is_named_and_the_others_are_noted(
    fresh_topics: FreshTopics, tmp_path: Path
) -> None:
    config, noted = fresh_topics(partitions=2, max_message_bytes="1000"), tmp_path / "noted.jsonl"
    letters = [letter(config, 0), letter(config, 1, value=b"x" * 5_000)]
    with pytest.raises(BrokerError, match=f"did not take {config.engagements_topic}-1@1 into its topic again"):
        replay_letters(letters, config, noted)
    assert replay_letters(letters[:1], config, noted).sent == 0


def test_a_note_torn_by_a_kill_does_no_harm_and_a_damaged_one_is_told(
    fresh_topics: FreshTopics, tmp_path: Path
) -> None:
    config, noted = fresh_topics(partitions=2), tmp_path / "noted.jsonl"
    replay_letters([letter(config, 0)], config, noted)
    with noted.open("ab") as file:
        file.write(b'{"digest":"ab')
    assert replay_letters([letter(config, 0), letter(config, 1)], config, noted).sent == 1
    assert replay_letters([letter(config, 0), letter(config, 1)], config, noted).sent == 0
    with noted.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(StoreError, match=r"noted\.jsonl: .*Repair the line"):
        replay_letters([letter(config, 0)], config, noted)


def test_the_commands_list_show_and_replay(fresh_topics: FreshTopics, tmp_path: Path) -> None:
    config = fresh_topics(partitions=2)
    file = tmp_path / "facetstream.toml"
    names = ("bootstrap_servers", "items_topic", "engagements_topic", "dead_letters_topic", "group_id")
    lines = "".join(f"{name} = {json.dumps(getattr(config, name))}\n" for name in names)
    file.write_text(f"data_dir = {json.dumps(str(tmp_path / 'data'))}\n[kafka]\n{lines}")
    assert Config.model_validate({}).source.kind == "kafka"
    value = json.dumps({"type": "item.created", "item_id": "é"}).encode()
    bad = letter(config, 7, topic=config.items_topic, value=value, reason=Reason.FUTURE)
    with closing(TopicDeadLetters(config)) as sink:
        sink.write([letter(config, 0), bad])
    produce(config, config.items_topic, [(1, b"before", b"")])

    def facetstream(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "streamer.cli", "deadletters", *words, "--config", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    assert json.loads(facetstream("list", "--json"))["reasons"] == {"invalid": 1, "future": 1}
    shown = json.loads(facetstream("show", bad.source, "--json"))
    assert json.loads(shown["readable"]["value"]) == json.loads(value)
    assert "é" in facetstream("show", bad.source)
    assert "ff30" in facetstream("show", letter(config, 0).source)
    assert "no dead letter of items-0@9" in facetstream("show", "items-0@9", code=1)
    assert "TOPIC-PARTITION@OFFSET" in facetstream("show", "items", code=2)
    assert json.loads(facetstream("replay", "--reason", "future", "--dry-run", "--json"))["sent"] == 1
    assert "1 dead letters sent again" in facetstream("replay", "--reason", "future")
    assert json.loads(facetstream("replay", "--reason", "future", "--json"))["passed_over"] == {"sent before": 1}
    assert [row[:2] for row in records(config, config.items_topic, 1)] == [(b"before", b""), (b"k7", value)]


def test_an_event_log_is_not_written_to(tmp_path: Path) -> None:
    file = tmp_path / "facetstream.toml"
    file.write_text('[source]\nkind = "eventlog"\n')
    command = [sys.executable, "-m", "streamer.cli", "deadletters", "replay", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "append the corrected lines" in done.stderr
