"""One shard of an event log: the files of its number."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from schemas.errors import UsageError
from streamer.sources.base import Partition, Stream
from streamer.sources.eventlog import EventLogSource

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two items files, and engagements of the first only."""
    for name in ("items-00000", "items-00001", "engagements-00000"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"from":"{name}"}}\n')
    return tmp_path


def test_a_shard_reads_the_files_of_its_number(log: Path) -> None:
    with closing(EventLogSource(log, shard=0)) as source:
        assert source.partitions() == [
            Partition(Stream.ENGAGEMENTS, "engagements", 0),
            Partition(Stream.ITEMS, "items", 0),
        ]
        values = [bytes(value or b"") for records in source.poll(10, 0) for value in records.values]
    assert sorted(values) == [b'{"from":"engagements-00000"}', b'{"from":"items-00000"}']


def test_a_shard_without_engagements_reads_its_items(log: Path) -> None:
    with closing(EventLogSource(log, shard=1)) as source:
        assert source.partitions() == [Partition(Stream.ITEMS, "items", 1)]
        assert source.identity() == {"kind": "eventlog"}


def test_a_shard_without_items_is_refused(log: Path) -> None:
    with pytest.raises(UsageError, match="no items file of shard 2"):
        EventLogSource(log, shard=2)


def test_a_file_of_another_shard_that_appears_is_no_concern(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.sources.eventlog._CHANGE_CHECK_S", 0.0)
    with closing(EventLogSource(log, follow=True, shard=0)) as source:
        source.poll(10, 0)
        (log / "engagements-00001.jsonl").write_text("{}\n")
        assert source.poll(10, 0) == []
    with closing(EventLogSource(log, follow=True, shard=1)) as source:
        (log / "engagements-00002.jsonl").write_text("{}\n")
        assert len(source.poll(10, 0)) == 2
