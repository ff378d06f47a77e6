from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest
from prometheus_client import CollectorRegistry

from schemas.config import HttpConfig
from streamer.asking import STATE_FILE, running_daemon
from streamer.http import HttpServer, Routes


def left_behind(data_dir: Path, url: str) -> None:
    (data_dir / STATE_FILE).write_bytes(orjson.dumps({"pid": os.getpid(), "url": url, "started_at_ms": 0}))


def test_a_daemon_that_answers_is_found_even_when_it_is_stuck(tmp_path: Path) -> None:
    routes = Routes(lambda: (False, {}), lambda: (False, {}), dict, {})
    server = HttpServer(HttpConfig(port=0), CollectorRegistry(), routes)
    try:
        left_behind(tmp_path, server.url)
        assert running_daemon(tmp_path) == server.url
    finally:
        server.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense"])
def test_the_file_of_a_killed_daemon_is_no_daemon_though_its_pid_lives_again(tmp_path: Path, url: str) -> None:
    left_behind(tmp_path, url)
    assert running_daemon(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_file_is_no_daemon(tmp_path: Path, content: str) -> None:
    (tmp_path / STATE_FILE).write_text(content)
    assert running_daemon(tmp_path) is None
