from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from schemas.dead_letters import DeadLetter, Reason
from schemas.errors import StoreError, UsageError
from streamer.dead_letters import FileDeadLetters, read_file

if TYPE_CHECKING:
    from pathlib import Path


def letter(offset: int, **changes: object) -> DeadLetter:
    whole = {"detail": "d", "topic": "items", "partition": 1, "failed_at_ms": 5, "key": b"k", "value": b"\xff\n{"}
    return DeadLetter(reason=Reason.UNPARSEABLE, offset=offset, **whole | changes)


def write(path: Path, *offsets: int) -> int:
    with closing(FileDeadLetters(path)) as sink:
        sink.restore(None)
        sink.write([letter(offset) for offset in offsets])
        return sink.position


def offsets(path: Path) -> list[int]:
    return [each.offset for each in read_file(path)]


@given(
    st.lists(
        st.builds(
            DeadLetter,
            reason=st.sampled_from(Reason),
            detail=st.text(),
            topic=st.text(),
            partition=st.integers(0, 99),
            offset=st.integers(0, 1 << 60),
            failed_at_ms=st.integers(0, 1 << 50),
            key=st.none() | st.binary(),
            value=st.none() | st.binary(),
        )
    )
)
def test_letters_come_back_as_they_went_in(tmp_path_factory: pytest.TempPathFactory, letters: list[DeadLetter]) -> None:
    path = tmp_path_factory.mktemp("letters") / "letters.jsonl"
    with closing(FileDeadLetters(path)) as sink:
        sink.write(letters[:1])
        sink.write(letters[1:])
        assert sink.position == path.stat().st_size
        assert list(read_file(path)) == letters  # before close: write returns when they are kept


def test_what_was_written_after_the_stored_position_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    stored = write(path, 1, 2)
    write(path, 3, 4)
    with closing(FileDeadLetters(path)) as sink:
        sink.restore(stored)
        assert sink.position == stored
        sink.write([letter(3)])
    assert offsets(path) == [1, 2, 3]


def test_restore_to_nothing_empties_the_file(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    write(path, 1)
    with closing(FileDeadLetters(path)) as sink:
        sink.restore(0)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("torn", [1, 30, 70_000])
def test_a_line_torn_by_a_crash_is_cut_and_not_read(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "letters.jsonl"
    stored = write(path, 1, 2)
    with path.open("ab") as file:
        file.write(letter(3, value=b"x" * 100_000).model_dump_json().encode()[:torn])
    assert offsets(path) == [1, 2]
    for position in (None, stored, stored + torn):
        with closing(FileDeadLetters(path)) as sink:
            sink.restore(position)
            assert sink.position == stored
        assert path.stat().st_size == stored


def test_a_file_without_any_whole_line_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    path.write_bytes(b"{" * 200_000)
    with closing(FileDeadLetters(path)) as sink:
        sink.restore(None)
        assert sink.position == 0


def test_a_file_that_somebody_emptied_is_gone_on_with_and_logged(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    stored = write(path, 1, 2)
    path.unlink()
    with capture_logs() as logs, closing(FileDeadLetters(path)) as sink:
        sink.restore(stored)
        sink.write([letter(3)])
    assert offsets(path) == [3]
    assert [log["event"] for log in logs] == ["dead_letter_file_shrank"]


def test_damaged_lines_are_named_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    write(path, 1)
    with path.open("ab") as file:
        file.write(b'{"reason": "nonsense"}\n\xff\xfe\n\n')
    write(path, 2)
    with capture_logs() as logs:
        assert offsets(path) == [1, 2]
    assert [(log["event"], log["line"]) for log in logs] == [("dead_letter_damaged", line) for line in (2, 3, 4)]


def test_a_full_disk_leaves_whole_lines_only_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "letters.jsonl"
    real = os.pwrite

    def fills_up(file: int, data: bytes, at: int) -> int:
        if at > first:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:10], at)

    with closing(FileDeadLetters(path)) as sink:
        sink.write([letter(1)])
        first = sink.position
        monkeypatch.setattr(os, "pwrite", fills_up)
        with pytest.raises(StoreError, match=r"letters\.jsonl.*No space left"):
            sink.write([letter(2)])
        monkeypatch.undo()
        assert path.stat().st_size == sink.position == first
        sink.write([letter(3)])
    assert offsets(path) == [1, 3]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:7], at))
    write(tmp_path / "letters.jsonl", 1, 2)
    assert offsets(tmp_path / "letters.jsonl") == [1, 2]


def test_no_file_holds_no_letters(tmp_path: Path) -> None:
    assert list(read_file(tmp_path / "none.jsonl")) == []


def test_paths_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        FileDeadLetters(tmp_path / "nowhere" / "letters.jsonl")
    with pytest.raises(UsageError, match="cannot read"):
        list(read_file(tmp_path))


def test_close_is_idempotent(tmp_path: Path) -> None:
    sink = FileDeadLetters(tmp_path / "letters.jsonl")
    sink.close()
    sink.close()
