from __future__ import annotations

import gzip
import threading
import tracemalloc
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
import zstandard

from schemas.errors import UsageError
from streamer.sources.base import Partition, Stream
from streamer.sources.eventlog import EventLogSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streamer.sources.base import Source

ITEMS = Partition(Stream.ITEMS, "items", 0)
ENGAGEMENTS = Partition(Stream.ENGAGEMENTS, "engagements", 0)


@pytest.fixture
def opened() -> Iterator[Callable[..., EventLogSource]]:
    """Opens sources and closes them after the test."""
    with ExitStack() as stack:
        yield lambda path, **options: stack.enter_context(closing(EventLogSource(path, **options)))


def items(number: int) -> Partition:
    return Partition(Stream.ITEMS, "items", number)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "items.jsonl").write_bytes(b"i0\ni1\ni2\n")
    (tmp_path / "engagements.jsonl").write_bytes(b"e0\ne1\n")
    return tmp_path


def drain(source: EventLogSource, max_records: int = 100) -> dict[Partition, list[bytes | None]]:
    read: dict[Partition, list[bytes | None]] = {partition: [] for partition in source.partitions()}
    for records in polls(source, max_records):
        read[records.partition] += records.values
    return read


def polls(source: EventLogSource, max_records: int) -> Iterator:
    while got := source.poll(max_records, timeout_s=5):
        yield from got
    assert source.exhausted


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def values(source: EventLogSource, timeout_s: float = 0) -> list[bytes | None]:
    return [value for records in source.poll(100, timeout_s) for value in records.values]


def test_it_is_a_source(log, opened):
    source: Source = opened(log)
    assert source.partitions() == [ENGAGEMENTS, ITEMS]


def test_records_carry_line_numbers_no_keys_and_where_to_go_on(log, opened):
    by_partition = {records.partition: records for records in opened(log).poll(100, 0)}
    records = by_partition[ITEMS]
    assert list(records.offsets) == [0, 1, 2]
    assert list(records.keys) == [None, None, None]
    assert list(records.values) == [b"i0", b"i1", b"i2"]
    assert records.next_offset == 3


def test_blank_lines_are_records_so_that_line_numbers_stay_true(tmp_path, opened):
    (tmp_path / "items.jsonl").write_bytes(b"\n\na\n\r\nb\n")
    assert drain(opened(tmp_path)) == {ITEMS: [b"", b"", b"a", b"", b"b"]}


def test_carriage_returns_before_newlines_are_no_part_of_a_record(tmp_path, opened):
    (tmp_path / "items.jsonl").write_bytes(b"a\r\nb\rc\r\r\nd\r")
    assert drain(opened(tmp_path)) == {ITEMS: [b"a", b"b\rc\r", b"d"]}


def test_the_end_of_the_file_ends_the_last_record(tmp_path, opened):
    (tmp_path / "items.jsonl").write_bytes(b"a\nb")
    source = opened(tmp_path)
    assert source.end_offsets() == {ITEMS: 2}
    assert drain(source) == {ITEMS: [b"a", b"b"]}


def test_an_empty_file_is_a_partition_without_records(tmp_path, opened):
    (tmp_path / "items.jsonl").touch()
    source = opened(tmp_path)
    assert source.end_offsets() == {ITEMS: 0}
    assert source.poll(10, timeout_s=60) == []
    assert source.exhausted


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_files_read_and_seek_like_plain_ones(tmp_path, suffix, compress, opened):
    lines = [b"line %d" % i for i in range(300_000)]
    whole = b"\n".join(lines) + b"\n"
    # two members, as appending with the command-line tools makes them
    (tmp_path / f"items.jsonl{suffix}").write_bytes(compress(whole[:1_000_003]) + compress(whole[1_000_003:]))
    source = opened(tmp_path)
    assert source.end_offsets() == {ITEMS: 300_000}
    assert drain(source, 7_777) == {ITEMS: lines}
    source.seek({ITEMS: 299_990})
    assert drain(source) == {ITEMS: lines[299_990:]}


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "trailing garbage", "empty"])
def test_a_damaged_compressed_file_is_an_error_that_names_it(tmp_path, suffix, compress, damage, opened):
    path = tmp_path / f"items.jsonl{suffix}"
    good = compress(b"a line\n" * 1000)
    bad = {"truncated": good[:-3], "garbage": b"not compressed at all", "trailing garbage": good + b"junk"}
    path.write_bytes(bad.get(damage, b""))
    with pytest.raises(UsageError, match=rf"items\.jsonl{suffix} is"):
        drain(opened(tmp_path), 10_000)


def test_a_poll_shares_its_records_evenly_and_gives_away_what_one_has_not(log, opened):
    append(log / "items.jsonl", b"x\n" * 97)
    source = opened(log)
    assert {str(r.partition): len(r) for r in source.poll(4, 0)} == {"items-0": 2, "engagements-0": 2}
    assert {str(r.partition): len(r) for r in source.poll(50, 0)} == {"items-0": 50}


def test_no_partition_starves_when_polls_are_smaller_than_their_number(tmp_path, opened):
    for number in range(4):
        (tmp_path / f"items-{number:05d}.jsonl").write_bytes(b"x\n" * 100)
    source = opened(tmp_path)
    turns = [records.partition.number for _ in range(8) for records in source.poll(1, 0)]
    assert sorted(turns) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_paused_partition_keeps_its_position(log, opened):
    source = opened(log)
    source.poll(2, 0)
    source.pause([ITEMS])
    assert values(source) == [b"e1"]
    assert not source.exhausted
    assert values(source) == []
    source.resume([ITEMS])
    assert values(source) == [b"i1", b"i2"]


def test_seeking_goes_back_and_forth_and_to_the_beginning_where_nothing_is_said(log, opened):
    source = opened(log)
    drain(source)
    source.seek({ITEMS: 2})
    assert drain(source) == {ITEMS: [b"i2"], ENGAGEMENTS: [b"e0", b"e1"]}
    source.seek({ITEMS: 3, ENGAGEMENTS: 1})
    assert drain(source) == {ITEMS: [], ENGAGEMENTS: [b"e1"]}


def test_a_stored_position_beyond_the_end_tells_that_the_log_was_cut(log, opened):
    with pytest.raises(UsageError, match=r"items\.jsonl was truncated .* offset is 4, but only 3 lines"):
        opened(log).seek({ITEMS: 4})


def test_a_stored_position_of_a_partition_that_is_gone_is_an_error(log, opened):
    source = opened(log)
    source.seek({items(1): 0})
    with pytest.raises(UsageError, match=r"no file for partition items-1, of which 7 records"):
        source.seek({items(1): 7})


def test_a_line_over_the_limit_is_cut_and_the_next_one_is_whole(tmp_path, opened):
    (tmp_path / "items.jsonl").write_bytes(b"a" * 3_000_000 + b"\n" + b"b" * 10 + b"\r\n" + b"c" * 11 + b"\nd\n")
    assert drain(opened(tmp_path, max_line_bytes=10)) == {ITEMS: [b"a" * 11, b"b" * 10, b"c" * 11, b"d"]}


def test_a_line_that_never_ends_does_not_fill_the_memory(tmp_path, opened):
    with (tmp_path / "items.jsonl").open("wb") as file:
        file.truncate(1 << 28)  # sparse: zero bytes without a newline
    source = opened(tmp_path, max_line_bytes=1_000)
    tracemalloc.start()
    try:
        [records] = source.poll(10, 0)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(value) for value in records.values] == [1_001]
    assert peak_bytes < 1 << 23


def test_following_returns_a_line_once_its_newline_is_there(log, opened):
    source = opened(log, follow=True)
    assert len(values(source)) == 5
    append(log / "items.jsonl", b"half")
    assert values(source) == []
    assert source.end_offsets()[ITEMS] == 3
    append(log / "items.jsonl", b" a line\nand")
    assert values(source, timeout_s=5) == [b"half a line"]
    assert source.end_offsets()[ITEMS] == 4


def test_a_poll_that_waits_returns_when_the_log_grows(log, opened):
    source = opened(log, follow=True)
    assert len(values(source)) == 5
    got: list[bytes | None] = []
    waiting = threading.Thread(target=lambda: got.extend(values(source, timeout_s=60)))
    waiting.start()
    append(log / "engagements.jsonl", b"e2\n")
    waiting.join(timeout=30)
    assert got == [b"e2"]
    assert not source.exhausted


def test_a_last_record_without_newline_is_not_read_again_once_it_is_completed(log, opened):
    append(log / "items.jsonl", b"i3")
    assert drain(opened(log))[ITEMS] == [b"i0", b"i1", b"i2", b"i3"]
    following = opened(log, follow=True)
    following.seek({ITEMS: 4, ENGAGEMENTS: 2})
    assert values(following) == []
    append(log / "items.jsonl", b"\ni4\n")
    [records] = following.poll(10, 5)
    assert list(records.offsets) == [4]
    assert list(records.values) == [b"i4"]


@pytest.mark.parametrize("change", ["truncate", "replace", "remove"])
def test_following_a_file_that_changes_otherwise_than_by_growing_is_an_error(log, change, opened):
    source = opened(log, follow=True)
    assert len(values(source)) == 5
    path = log / "items.jsonl"
    match change:
        case "truncate":
            path.write_bytes(b"i0\n")
        case "replace":
            (log / "new").write_bytes(b"i0\ni1\ni2\ni3\n")
            (log / "new").rename(path)
        case _:
            path.unlink()
    with pytest.raises(UsageError, match=r"items\.jsonl (was truncated or replaced|went away) while"):
        source.poll(10, timeout_s=30)


def test_a_file_that_appears_while_following_is_not_passed_over(tmp_path, opened):
    (tmp_path / "items.jsonl").write_bytes(b"i0\n")
    source = opened(tmp_path, follow=True)
    assert values(source) == [b"i0"]
    (tmp_path / "engagements.jsonl").write_bytes(b"e0\n")
    with pytest.raises(UsageError, match=r"engagements\.jsonl appeared"):
        source.poll(10, timeout_s=30)


def test_end_offsets_follow_growth(log, opened):
    source = opened(log, follow=True)
    assert source.end_offsets() == {ITEMS: 3, ENGAGEMENTS: 2}
    append(log / "items.jsonl", b"i3\ni4")
    assert source.end_offsets() == {ITEMS: 4, ENGAGEMENTS: 2}
    append(log / "items.jsonl", b"\n\n")
    assert source.end_offsets() == {ITEMS: 6, ENGAGEMENTS: 2}


def test_closing_twice_is_fine_and_polling_afterwards_is_not(log, opened):
    source = opened(log)
    source.close()
    source.close()
    with pytest.raises(UsageError, match="is closed"):
        source.poll(1, 0)
