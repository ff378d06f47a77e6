"""Measurements in processes of their own: a fresh heap, and nothing of one system left over for the next.

    python -m benchmarks.apart MODULE:FUNCTION

reads the function's arguments as one JSON object from standard input and writes what it returns to standard output.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Self

import orjson
import structlog

Answer = dict[str, Any]


class ApartError(Exception):
    """A measurement's process failed; its own message went to standard error."""


class Apart:
    """A function running in a process of its own. Leave the context, or call :meth:`answer`, to end it.

    Args:
        function: importable, of JSON-able keyword arguments and answer.
        arguments: its arguments.
        environment: variables to set.
        interpreter: Python to run it with.
    """

    def __init__(
        self,
        function: Callable[..., Answer],
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
        interpreter: str = sys.executable,
    ) -> None:
        name = f"{function.__module__}:{function.__name__}"
        assert function.__module__ != "__main__", "a fresh process cannot import from __main__"
        self._name = name
        # A file, as a pipe that nobody reads yet would hold the process back.
        self._told = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the context is left
        self._process = subprocess.Popen(
            [interpreter, "-m", "benchmarks.apart", name],
            stdin=subprocess.PIPE,
            stdout=self._told,
            env=os.environ | environment,
        )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(orjson.dumps(arguments))

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask it to end: SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def answer(self) -> Answer:
        """Wait for the end and return what the function returned.

        Raises:
            ApartError: if it failed.
        """
        if self._process.wait() != 0:
            raise ApartError(f"{self._name} ended with status {self._process.returncode}")
        self._told.seek(0)
        found: Answer = orjson.loads(self._told.read())
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._told.close()


def call(
    function: Callable[..., Answer],
    arguments: Mapping[str, Any],
    *,
    apart: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Run a function in a fresh process and return its answer; in this one unless ``apart``.

    Raises:
        ApartError: if the process failed.
    """
    if not apart:
        return function(**arguments)
    with Apart(function, arguments, environment or {}) as running:
        return running.answer()


def settle_heap() -> None:
    """Set the garbage collector as the daemon sets it before it starts reading."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def quiet_logs() -> None:
    """Warnings only, on standard error: standard output is the answer's."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _main() -> int:
    module, _, name = sys.argv[1].partition(":")
    quiet_logs()
    answer = getattr(importlib.import_module(module), name)(**orjson.loads(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
