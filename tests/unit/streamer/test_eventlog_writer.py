from __future__ import annotations

import resource
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import orjson
import pytest

from schemas.errors import DependencyError, UsageError
from schemas.events import EVENT, ItemCreated
from streamer.eventlog_format import discover, partition_of
from streamer.sources.base import Stream
from streamer.sources.eventlog import EventLogSource, EventLogWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

CREATED = {"type": "item.created", "item_id": "a1", "occurred_at": 5, "title": "One"}
CLICK = {"type": "engagement", "item_id": "a1", "occurred_at": 6, "user_id": "u1", "kind": "click"}


def test_what_is_written_is_read_back_as_the_same_events(tmp_path):
    created = ItemCreated.model_validate(CREATED)
    with EventLogWriter(tmp_path / "log") as writer:
        writer.write(created)
        writer.write(CLICK)
    with closing(EventLogSource(tmp_path / "log")) as source:
        read = {records.partition.stream: list(records.values) for records in source.poll(10, 0)}
    assert [EVENT.validate_json(line) for line in read[Stream.ITEMS]] == [created]
    assert [orjson.loads(line) for line in read[Stream.ENGAGEMENTS]] == [CLICK]


def test_an_item_and_its_engagements_get_partitions_of_the_same_number(tmp_path):
    with EventLogWriter(tmp_path, partitions=3) as writer:
        for i in range(30):
            writer.write(CREATED | {"item_id": f"a{i}"})
            writer.write(CLICK | {"item_id": f"a{i}"})
    assert len(discover(tmp_path)) == 6
    with closing(EventLogSource(tmp_path)) as source:
        for records in source.poll(1000, 0):
            for line in records.values:
                assert partition_of(orjson.loads(line)["item_id"], 3) == records.partition.number


def test_both_streams_have_files_even_when_nothing_is_written(tmp_path):
    with EventLogWriter(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engagements.jsonl", "items.jsonl"]


def test_encoded_lines_are_written_as_they_are(tmp_path):
    with EventLogWriter(tmp_path, partitions=2) as writer:
        writer.write_lines(Stream.ITEMS, [b"not even json", b""], partition=1)
        writer.write_lines(Stream.ITEMS, [], partition=0)
    assert (tmp_path / "items-00001.jsonl").read_bytes() == b"not even json\n\n"


def test_a_log_is_not_readable_before_it_is_finished(tmp_path):
    writer = EventLogWriter(tmp_path)
    writer.write(CREATED)
    with pytest.raises(UsageError, match="unfinished"):
        discover(tmp_path)
    writer.close()
    writer.close()
    assert len(discover(tmp_path)) == 2


def interrupted_write(writer):
    with writer:
        writer.write(CREATED)
        raise KeyboardInterrupt


def test_an_exception_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(EventLogWriter(tmp_path))
    assert list(tmp_path.iterdir()) == []


@contextmanager
def disk_of_4k() -> Iterator[None]:
    """Lets no file of this process grow beyond 4 KiB, which fails as a full disk does; pytest's own output too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("lines", [1_000, 1_000_000], ids=["when closing", "when writing"])
def test_a_full_disk_is_an_error_that_leaves_no_half_log(tmp_path, lines):
    writer = EventLogWriter(tmp_path)
    with disk_of_4k(), pytest.raises(DependencyError, match=r"cannot (write|finish) event log"), writer:
        writer.write_lines(Stream.ITEMS, [b"a line"] * lines)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_log_is_kept_unless_told_otherwise(tmp_path):
    with EventLogWriter(tmp_path, partitions=2) as writer:
        writer.write(CREATED)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="is not empty"):
        EventLogWriter(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(EventLogWriter(tmp_path, overwrite=True))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwriting_replaces_a_log_of_another_layout_and_the_remains_of_a_crash(tmp_path):
    with EventLogWriter(tmp_path, partitions=2) as writer:
        writer.write(CREATED)
    (tmp_path / "items.jsonl.partial").write_bytes(b"left by a crash")
    (tmp_path / "items-00009.jsonl.partial").write_bytes(b"left by a crash of another layout")
    with EventLogWriter(tmp_path, overwrite=True) as writer:
        writer.write(CLICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engagements.jsonl", "items.jsonl"]
    assert (tmp_path / "items.jsonl").read_bytes() == b""


def test_overwriting_never_touches_what_is_no_log(tmp_path):
    (tmp_path / "thesis.tex").write_bytes(b"years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex is no event log file"):
        EventLogWriter(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "log").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot make event log"):
        EventLogWriter(tmp_path / "log")


def test_records_that_would_break_the_line_numbers_are_refused(tmp_path):
    with (
        pytest.raises(UsageError, match="newline"),
        EventLogWriter(tmp_path) as writer,
    ):
        writer.write_lines(Stream.ITEMS, [b"a\nb"])


def test_events_without_type_or_item_are_refused(tmp_path):
    with EventLogWriter(tmp_path) as writer:
        for event in ({"item_id": "a"}, {"type": "item.created"}, {"type": 3, "item_id": "a"}):
            with pytest.raises(UsageError, match="needs a type and an item_id"):
                writer.write(event)


@pytest.mark.parametrize("partitions", [0, -1, 100_001])
def test_a_senseless_number_of_partitions_is_refused(tmp_path, partitions):
    with pytest.raises(UsageError, match="partitions"):
        EventLogWriter(tmp_path, partitions)


def test_a_partition_outside_the_log_is_refused(tmp_path):
    with EventLogWriter(tmp_path) as writer, pytest.raises(UsageError, match="partition 1"):
        writer.write_lines(Stream.ITEMS, [b"{}"], partition=1)
