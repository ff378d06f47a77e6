"""Places in an event log as people name them, and --reset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.config import Config
from schemas.errors import UsageError
from streamer.positions import parse_resets, resolve
from streamer.sources.base import Partition
from streamer.sources.eventlog import EventLogSource
from tests.builders import write_log


def event(at: int) -> bytes:
    return json.dumps({"type": "item.created", "item_id": "a", "occurred_at": at, "title": "t"}).encode()


def click(at: int) -> bytes:
    return json.dumps({"type": "engagement", "item_id": "a", "user_id": "u", "kind": "k", "occurred_at": at}).encode()


@pytest.fixture
def log(tmp_path: Path) -> Config:
    """Two shards; times in seconds 1, 2, 3, ..., with a record of no time in between."""
    lines = {
        "items-00000": [event(1_000), b"nonsense", event(3_000), event(2_000), event(4_000)],
        "items-00001": [],
        "engagements-00000": [click(at * 1_000) for at in range(5_000)],
        "engagements-00001": [click(9_000)],
    }
    path = write_log(tmp_path / "log", lines)
    return Config.model_validate({"source": {"kind": "eventlog", "path": path}, "data_dir": tmp_path})


def partitions(config: Config) -> list[Partition]:
    assert config.source.path is not None
    source = EventLogSource(config.source.path)
    try:
        return source.partitions()
    finally:
        source.close()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("earliest", [0, 0, 0, 0]),
        ("latest", [5, 0, 5_000, 1]),
        ("7", [7, 7, 7, 7]),
        ("1970-01-01T00:00:00Z", [0, 0, 0, 0]),
        ("1970-01-01T00:00:03Z", [2, 0, 3, 0]),  # the first at that time or later, whatever comes after it
        ("1970-01-01T01:23:19Z", [5, 0, 4_999, 1]),
        ("2030-01-01T00:00:00+02:00", [5, 0, 5_000, 1]),
    ],
)
def test_places(log: Config, where: str, expected: list[int]) -> None:
    found = resolve(log, partitions(log), where)
    assert {str(partition): at for partition, at in found.items()} == dict(
        zip(["items-0", "items-1", "engagements-0", "engagements-1"], expected, strict=True)
    )


def test_only_what_is_asked_for_is_answered(log: Config) -> None:
    mine = [partition for partition in partitions(log) if partition.number == 1]
    assert resolve(log, mine, "latest").keys() == set(mine)


@pytest.mark.parametrize("where", ["", "noon", "-3", "1.5", "latest ", "2017-13-01T00:00:00Z"])
def test_what_is_no_place_is_refused(log: Config, where: str) -> None:
    with pytest.raises(UsageError, match="is no place in a topic: give earliest, latest, an offset, or a time"):
        resolve(log, partitions(log), where)


def test_resets() -> None:
    assert parse_resets(["items-0=earliest", "a=b-1=12", "x=2017-10-01T03:00:00Z"][::2]) == {
        "items-0": "earliest",
        "x": "2017-10-01T03:00:00Z",
    }
    assert parse_resets([]) == {}


@pytest.mark.parametrize("given", ["", "items-0", "items-0=", "=earliest"])
def test_a_reset_of_another_form_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="give PARTITION=WHERE, for example items-0=earliest"):
        parse_resets([given])


def test_a_reset_to_nowhere_is_refused() -> None:
    with pytest.raises(UsageError, match="'soon' is no place"):
        parse_resets(["items-0=soon"])
