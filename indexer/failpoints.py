"""Places where a process can be made to fail, beside every durable step.

``FACETSTREAM_FAILPOINTS`` arms them when this module is imported::

    batch.after=kill@3;checkpoint.linked=error;wal.before=sleep:250

that is ``name=action``, optionally ``@n``: at the n-th time the place is passed, the first by default, and only then.
Actions: ``kill`` (SIGKILL of this process), ``stop`` (SIGSTOP), ``error`` (raise a StoreError), ``sleep:MS``. Without
the variable :func:`failpoint` is a function that does nothing, about 30 ns a call.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from schemas.errors import ConfigError, StoreError
from schemas.settings import FAILPOINTS_VARIABLE

POINTS: Final = (
    "batch.before",
    "batch.after",
    "wal.before",
    "wal.after",
    "commit.before",
    "commit.after",
    "letters.before",
    "letters.after",
    "split.planned",
    "split.before",
    "split.after",
    "merge.planned",
    "merge.before",
    "merge.after",
    "mark.before",
    "mark.after",
    "recenter.before",
    "recenter.after",
    "reassign.before",
    "reassign.after",
    "bounds.before",
    "bounds.after",
    "checkpoint.before",
    "checkpoint.linked",
    "checkpoint.copied",
    "checkpoint.published",
    "restore.before",
    "restore.copied",
    "restore.renamed",
    "snapshot.before",
    "snapshot.written",
    "snapshot.published",
    "delta.before",
    "delta.published",
    "generation.created",
    "promote.before",
    "promote.after",
    "shard.opened",
    "shard.closing",
    "reset.before",
    "reset.after",
    "refresh.named",
    "refresh.begun",
    "refresh.linked",
    "refresh.encoded",
    "refresh.filed",
    "refresh.renamed",
    "refresh.promoted",
    "artifact.written",
    "artifact.published",
)
ACTIONS: Final = ("kill", "stop", "error", "sleep")


class _Armed(NamedTuple):
    action: str
    hit: int
    ms: float


_THREAD = threading.local()


@contextmanager
def no_failpoints() -> Iterator[None]:
    """On this thread places neither act nor count: what is done is not the work they stand beside."""
    _THREAD.passes = True
    try:
        yield
    finally:
        _THREAD.passes = False


class Failpoints:
    """Armed failpoints; call it as :func:`failpoint`. Safe from any thread.

    Args:
        spec: as the variable holds it.

    Raises:
        ConfigError: an unknown name or action, or a number that is none.
    """

    def __init__(self, spec: str) -> None:
        self._armed: dict[str, list[_Armed]] = {}
        for part in filter(None, map(str.strip, spec.split(";"))):
            name, armed = _parse(part)
            self._armed.setdefault(name, []).append(armed)
        self._hits: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        """Pass the place ``name``.

        Raises:
            StoreError: if it was armed with ``error``.
        """
        if name not in self._armed or getattr(_THREAD, "passes", False):
            return
        with self._lock:
            self._hits[name] += 1
            hit = self._hits[name]
        for armed in self._armed[name]:
            if armed.hit == hit:
                _act(name, armed)


def _act(name: str, armed: _Armed) -> None:
    match armed.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(armed.ms / 1_000)
        case _:
            raise StoreError(f"failpoint {name} was told to fail by {FAILPOINTS_VARIABLE}; unset it")


def _parse(part: str) -> tuple[str, _Armed]:
    name, _, rest = part.partition("=")
    action, _, hit = rest.partition("@")
    action, _, ms = action.partition(":")
    if name not in POINTS:
        raise ConfigError(f"{FAILPOINTS_VARIABLE}: unknown failpoint {name!r} in {part!r}; known: {', '.join(POINTS)}")
    if action not in ACTIONS:
        raise ConfigError(
            f"{FAILPOINTS_VARIABLE}: unknown action {action!r} in {part!r}; known: kill, stop, error, sleep:MS"
        )
    if (action == "sleep") != ms.isdecimal() or (ms and not ms.isdecimal()):
        raise ConfigError(f"{FAILPOINTS_VARIABLE}: {part!r}: give milliseconds with sleep, as in sleep:250, only there")
    if "@" in part and not (hit.isdecimal() and int(hit) > 0):
        raise ConfigError(f"{FAILPOINTS_VARIABLE}: {part!r}: after @ goes a number from 1, the time to fail at")
    return name, _Armed(action, int(hit or 1), float(ms or 0))


def _pass(_name: str) -> None:
    """What a place costs when nothing is armed."""


def _from_environment() -> Callable[[str], None]:
    spec = os.environ.get(FAILPOINTS_VARIABLE)
    if not spec:
        return _pass
    try:
        return Failpoints(spec)
    except ConfigError as error:
        message = str(error)

    def refuse(_name: str) -> None:
        # At the first place, not while modules are imported, where nobody turns it into a clear message.
        raise ConfigError(message)

    return refuse


failpoint: Final[Callable[[str], None]] = _from_environment()
"""Pass a place by its name in :data:`POINTS`."""
