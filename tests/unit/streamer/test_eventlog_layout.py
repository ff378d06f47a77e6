from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from schemas.errors import UsageError
from streamer.eventlog_format import discover, partition_of
from streamer.sources.base import Stream
from streamer.sources.eventlog import EventLogSource

if TYPE_CHECKING:
    from pathlib import Path


def touch(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).write_bytes(b"{}\n")
    return path


def test_a_single_file_of_each_stream_is_partition_zero(tmp_path):
    found = discover(touch(tmp_path, "items.jsonl", "engagements.jsonl"))
    assert [str(file.partition) for file in found] == ["engagements-0", "items-0"]
    assert [file.partition.stream for file in found] == [Stream.ENGAGEMENTS, Stream.ITEMS]


def test_numbered_files_are_partitions_in_order(tmp_path):
    found = discover(touch(tmp_path, "items-00001.jsonl.gz", "items-00000.jsonl", "items-00002.jsonl.zst"))
    assert [file.partition.number for file in found] == [0, 1, 2]
    assert [file.compression for file in found] == [None, "gzip", "zstd"]


def test_other_files_beside_the_log_are_left_alone(tmp_path):
    found = discover(touch(tmp_path, "items.jsonl", "README.txt", "itemsets.jsonl", ".items.jsonl.swp"))
    assert [file.path.name for file in found] == ["items.jsonl"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"holds no items\.jsonl"),
        (["notes.txt"], r"holds no items\.jsonl"),
        (["items.jsonl", "items-00000.jsonl"], r"both items\.jsonl and numbered items files"),
        (["items-00000.jsonl", "items-00002.jsonl"], r"lacks items-00001\.jsonl"),
        (["items-00001.jsonl"], r"lacks items-00000\.jsonl"),
        (["items.jsonl", "items.jsonl.gz"], r"partition items-0 twice"),
        (["items-00000.jsonl", "items-00000.jsonl.zst"], r"partition items-0 twice"),
        (["items.jsonl", "engagements-0.jsonl"], r"engagements-0\.jsonl is not a name"),
        (["items_00000.jsonl"], r"items_00000\.jsonl is not a name"),
        (["items.jsonl.bz2"], r"items\.jsonl\.bz2 is not a name"),
        (
            ["items.jsonl", "engagements.jsonl.partial"],
            r"engagements\.jsonl\.partial was left by an unfinished",
        ),
    ],
)
def test_a_layout_that_could_lose_records_is_refused(tmp_path, names, message):
    with pytest.raises(UsageError, match=message):
        discover(touch(tmp_path, *names))


def test_a_path_that_is_no_directory_is_refused(tmp_path):
    file = touch(tmp_path, "items.jsonl") / "items.jsonl"
    for path in (file, tmp_path / "missing"):
        with pytest.raises(UsageError, match="is not a directory"):
            discover(path)


def test_a_directory_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "items.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"items\.jsonl is not a regular file"):
        discover(tmp_path)


def test_a_compressed_log_cannot_be_followed(tmp_path):
    (tmp_path / "items.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    with pytest.raises(UsageError, match=r"items\.jsonl\.gz is compressed and cannot be followed"):
        EventLogSource(tmp_path, follow=True)


def test_the_partition_of_an_item_is_the_same_everywhere():
    assert [partition_of(item, 4) for item in ("a1", "m1", "ü")] == [3, 3, 1]
    assert {partition_of(f"a{i}", 4) for i in range(40)} == {0, 1, 2, 3}
