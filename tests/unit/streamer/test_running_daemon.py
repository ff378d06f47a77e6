from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from streamer.asking import LOCK_FILE, STATE_FILE, running_daemon

URL = "http://127.0.0.1:1"


def left_behind(data_dir: Path, url: str = URL) -> None:
    (data_dir / STATE_FILE).write_bytes(orjson.dumps({"pid": os.getpid(), "url": url, "started_at_ms": 0}))
    (data_dir / LOCK_FILE).touch()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A data directory on which a daemon runs."""
    with (tmp_path / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


def test_a_daemon_that_holds_its_directory_runs_even_when_it_does_not_answer(held: Path) -> None:
    left_behind(held)
    assert running_daemon(held) == URL


def test_the_file_of_a_killed_daemon_is_no_daemon_though_its_pid_lives_and_its_port_answers(tmp_path: Path) -> None:
    left_behind(tmp_path)
    assert running_daemon(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_daemon_that_has_not_said_where_it_is_cannot_be_asked(held: Path, content: str) -> None:
    (held / STATE_FILE).write_text(content)
    assert running_daemon(held) is None


def test_an_empty_directory_has_no_daemon(tmp_path: Path) -> None:
    assert running_daemon(tmp_path) is None
