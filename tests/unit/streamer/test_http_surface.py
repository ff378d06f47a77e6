"""The HTTP surface: every request gets an answer, whatever it holds."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import pytest
from prometheus_client import CollectorRegistry, Counter

from schemas.config import HttpConfig
from schemas.errors import ConfigError, NotFoundError, StoreError, UsageError
from streamer.http import HttpServer, Routes


class State:
    alive = True
    ready = False


def post(document: dict[str, Any]) -> dict[str, Any]:
    match document.get("fail"):
        case "usage":
            raise UsageError("give an item")
        case "store":
            raise StoreError("disk full")
        case "missing":
            raise NotFoundError("no such item")
        case "defect":
            raise KeyError("oops")
        case _:
            return {"echo": document}


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def server(state: State) -> Iterator[HttpServer]:
    registry = CollectorRegistry()
    Counter("facetstream_test", "For this test", registry=registry).inc(3)
    running = HttpServer(
        HttpConfig(port=0),
        registry,
        Routes(
            lambda: (state.alive, {"alive": state.alive}),
            lambda: (state.ready, {"ready": state.ready}),
            lambda: {"records": 7},
            {"/echo": post},
        ),
    )
    yield running
    running.close()


def ask(server: HttpServer, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    address = urlparse(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if "json" in (answer.getheader("Content-Type") or "") else content
    finally:
        connection.close()


def test_health_is_told_by_status_code(server: HttpServer, state: State) -> None:
    assert ask(server, "GET", "/livez") == (200, {"alive": True})
    assert ask(server, "GET", "/readyz") == (503, {"ready": False})
    state.alive, state.ready = False, True
    assert ask(server, "GET", "/livez?verbose=1") == (503, {"alive": False})
    assert ask(server, "GET", "/readyz") == (200, {"ready": True})


def test_metrics_and_status(server: HttpServer) -> None:
    status, text = ask(server, "GET", "/metrics")
    assert status == 200
    assert b"facetstream_test_total 3.0" in text
    assert ask(server, "GET", "/status") == (200, {"records": 7})


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_not_found(server: HttpServer, method: str) -> None:
    status, document = ask(server, method, "/nowhere")
    assert status == 404
    assert "/nowhere" in document["error"]


def test_a_document_is_answered(server: HttpServer) -> None:
    assert ask(server, "POST", "/echo", b'{"a": 1}') == (200, {"echo": {"a": 1}})
    assert ask(server, "POST", "/echo") == (200, {"echo": {}})


@pytest.mark.parametrize(
    ("fail", "status", "words"),
    [
        ("usage", 400, "give an item"),
        ("store", 503, "disk full"),
        ("missing", 404, "no such item"),
        ("defect", 500, "KeyError"),
    ],
)
def test_each_kind_of_error_has_its_status(server: HttpServer, fail: str, status: int, words: str) -> None:
    found, document = ask(server, "POST", "/echo", json.dumps({"fail": fail}).encode())
    assert found == status
    assert words in document["error"]
    assert ask(server, "GET", "/status")[0] == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"3", b"\xff", b'"\\ud800"'])
def test_what_is_no_json_object_is_refused(server: HttpServer, body: bytes) -> None:
    assert ask(server, "POST", "/echo", body)[0] == 400


@pytest.mark.parametrize("length", ["-1", "1048577", "many"])
def test_a_wrong_length_is_refused(server: HttpServer, length: str) -> None:
    assert ask(server, "POST", "/echo", b"", Content_Length=length)[0] == 400


def test_a_request_is_answered_after_a_refused_one_on_the_same_connection(server: HttpServer) -> None:
    address = urlparse(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    for _ in range(2):
        connection.request("POST", "/nowhere", b'{"x": "' + b"x" * 1_000 + b'"}')
        answer = connection.getresponse()
        assert answer.status == 404
        answer.read()
    connection.request("GET", "/status")
    answer = connection.getresponse()
    assert answer.read() == b'{"records":7}'
    assert not answer.will_close
    connection.close()


def test_a_taken_port_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        routes = Routes(lambda: (True, {}), lambda: (True, {}), dict, {})
        with pytest.raises(ConfigError, match=f"port {port}.*set http.port"):
            HttpServer(HttpConfig(port=port), CollectorRegistry(), routes)


def test_closing_frees_the_port() -> None:
    routes = Routes(lambda: (True, {}), lambda: (True, {}), dict, {})
    first = HttpServer(HttpConfig(port=0), CollectorRegistry(), routes)
    port = urlparse(first.url).port or 0
    first.close()
    again = HttpServer(HttpConfig(port=port), CollectorRegistry(), routes)
    again.close()
