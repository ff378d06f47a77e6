"""The daemon as its users meet it: a process of its own, asked over HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import orjson

DEADLINE_S: Final = 600.0
_ASK_EVERY_S: Final = 0.05  # an answer takes some of the time of what is waited for


def ask(url: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the daemon answers, whatever the status: GET, or POST of ``document``.

    Raises:
        OSError: if nobody answers.
    """
    body = None if document is None else orjson.dumps(document)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=DEADLINE_S) as answer:  # noqa: S310  # loopback
            found: dict[str, Any] = orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        found = orjson.loads(error.read())
    return found


class DaemonError(Exception):
    """The daemon ended, or did not do in time what was waited for."""


class Daemon:
    """``facetstream run`` on an event log that it follows, from the moment its process is started.

    Args:
        data_dir: of the daemon.
        model: artifact that it begins with.
        log: event log.
        environment: variables to set.

    Attributes:
        started: monotonic seconds of the start.
    """

    def __init__(self, data_dir: Path, model: Path, log: Path, **environment: str) -> None:
        self._state = data_dir / "daemon.json"
        command = ["run", "--events", str(log), "--model", str(model), "--data-dir", str(data_dir), "--port", "0"]
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamer.cli", *command],
            stdout=subprocess.DEVNULL,
            env=os.environ | {"FACETSTREAM_LOG__LEVEL": "warning"} | environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def answering_after(self) -> float:
        """Seconds from the start until the index is loaded and HTTP answers."""
        self.until(lambda: bool(self.ask("/livez")))
        return time.monotonic() - self.started

    def ready_after(self) -> float:
        """Seconds from the start until everything in the log is applied, and the kernels are compiled."""

        def ready() -> bool:
            found = self.ask("/readyz")
            return found is not None and bool(found["caught_up"] and found["warmed"]) and found["lag"] == 0

        self.until(ready)
        return time.monotonic() - self.started

    def items_live(self) -> int:
        """As ``/status`` says."""
        found = self.ask("/status")
        return 0 if found is None else int(found["items_live"])

    def ask(self, path: str, document: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """As :func:`ask`; None while there is no daemon to ask."""
        try:
            state = orjson.loads(self._state.read_bytes())
            # The file of one that was killed stays.
            return ask(state["url"] + path, document) if state["pid"] == self._process.pid else None
        except (OSError, ValueError):
            return None

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition.

        Raises:
            DaemonError: if the process ends first, or ``DEADLINE_S`` pass.
        """
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if self._process.poll() is not None:
                raise DaemonError(f"the daemon ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise DaemonError(f"the daemon did not get there within {DEADLINE_S:g} s")
            time.sleep(_ASK_EVERY_S)

    def stop(self) -> float:
        """SIGTERM; seconds until it has ended in good order.

        Raises:
            DaemonError: if it did not.
        """
        began = time.monotonic()
        self._process.terminate()
        if self._process.wait(DEADLINE_S) != 0:
            raise DaemonError(f"the daemon stopped with status {self._process.returncode}")
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
