"""The file log against a short reference, whatever the bytes, the blocks, the growth and the restarts."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from streamer.eventlog_format import discover
from streamer.sources.eventlog import EventLogSource
from streamer.sources.eventlog_lines import LineReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.sources.base import Partition

PIECES = st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"bc", b"\x00\xff", b"a longer piece"])
CONTENTS = st.one_of(st.lists(PIECES, max_size=40).map(b"".join), st.binary(max_size=60))
LIMITS = st.integers(1, 20)
BLOCKS = st.integers(1, 30)


def reference(data: bytes, max_line_bytes: int, *, follow: bool) -> list[bytes]:
    *lines, last = data.split(b"\n")
    if last and not follow:
        lines.append(last)
    return [line.removesuffix(b"\r")[: max_line_bytes + 1] for line in lines]


@contextmanager
def reading(data: bytes, limit: int, block: int, *, follow: bool) -> Iterator[tuple[LineReader, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "items.jsonl")
        path.write_bytes(data)
        [file] = discover(Path(folder))
        with closing(LineReader(file, follow=follow, max_line_bytes=limit, block_bytes=block)) as reader:
            yield reader, path


@given(CONTENTS, LIMITS, BLOCKS, st.booleans(), st.data())
def test_reading_from_any_line_gives_the_rest_of_the_lines(contents, limit, block, follow, data):
    expected = reference(contents, limit, follow=follow)
    with reading(contents, limit, block, follow=follow) as (reader, _):
        start = data.draw(st.integers(0, len(expected)))
        reader.seek(start)
        taken: list[bytes] = []
        while lines := reader.take(data.draw(st.integers(1, 5))):
            taken += lines
            assert reader.position == start + len(taken)
        assert taken == expected[start:]
        assert reader.exhausted is not follow
        assert reader.end_offset() == len(expected)


@given(st.lists(CONTENTS, max_size=8), LIMITS, BLOCKS, st.data())
def test_following_any_growth_with_restarts_gives_every_complete_line_once(parts, limit, block, data):
    written, taken = b"", []
    with reading(b"", limit, block, follow=True) as (reader, path):
        reader.seek(0)
        for part in parts:
            with path.open("ab") as file:
                file.write(part)
            written += part
            taken += reader.take(data.draw(st.integers(1, 50)))
            reader.check_growing()
            if data.draw(st.booleans()):
                reader.seek(len(taken))
        taken += reader.take(1000)
        assert taken == reference(written, limit, follow=True)
        assert reader.end_offset() == len(taken)


@given(CONTENTS, CONTENTS, LIMITS, BLOCKS, st.booleans())
def test_going_on_after_the_end_of_a_file_that_grew_reads_only_what_is_new(before, after, limit, block, follow):
    with reading(before, limit, block, follow=False) as (reader, path):
        reader.seek(0)
        read = len(reader.take(1000))
        with path.open("ab") as file:
            file.write(after)
        [file] = discover(path.parent)
        with closing(LineReader(file, follow=follow, max_line_bytes=limit, block_bytes=block)) as later:
            later.seek(read)
            assert later.take(1000) == reference(before + after, limit, follow=follow)[read:]


@given(st.lists(CONTENTS, min_size=1, max_size=4), st.data())
def test_a_run_that_is_interrupted_anywhere_reads_what_an_undisturbed_one_reads(contents, data):
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        for number, content in enumerate(contents):
            Path(folder, f"items-{number:05d}.jsonl").write_bytes(content)
        source = opened.enter_context(closing(EventLogSource(Path(folder), max_line_bytes=10)))
        read: dict[Partition, list[bytes | None]] = {partition: [] for partition in source.partitions()}
        while True:
            most = data.draw(st.integers(1, 12))
            polled = source.poll(most, 0)
            assert sum(map(len, polled)) <= most
            for records in polled:
                assert list(records.offsets) == list(range(len(read[records.partition]), records.next_offset)), (
                    "offsets go on where the last ones ended"
                )
                read[records.partition] += records.values
            if not polled:
                break
            if data.draw(st.booleans()):
                source = opened.enter_context(closing(EventLogSource(Path(folder), max_line_bytes=10)))
                source.seek({partition: len(values) for partition, values in read.items()})
        ends = source.end_offsets()
        assert list(read.values()) == [reference(content, 10, follow=False) for content in contents]
        assert list(ends.values()) == [len(values) for values in read.values()]
