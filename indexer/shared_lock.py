"""A lock that readers share and a writer has alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class SharedLock:
    """Entered as it is, it is exclusive and re-entrant; :meth:`shared` lets other readers in.

    One who waits for it alone comes before readers who come later. :meth:`shared` may be entered again on the same
    thread, also inside the exclusive lock; the exclusive lock inside :meth:`shared` would wait for itself.
    """

    def __init__(self) -> None:
        self._alone = threading.RLock()
        self._changed = threading.Condition(threading.Lock())
        self._owner: int | None = None
        self._depth = 0
        self._readers = 0
        self._mine = threading.local()

    def __enter__(self) -> None:
        self._alone.acquire()  # from here on no reader comes in: each takes it for a moment
        self._depth += 1
        if self._depth == 1:
            with self._changed:
                while self._readers:
                    self._changed.wait()
            self._owner = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self._alone.release()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold it together with other readers."""
        if self._owner == threading.get_ident() or getattr(self._mine, "inside", False):
            yield
            return
        with self._alone, self._changed:
            self._readers += 1
        self._mine.inside = True
        try:
            yield
        finally:
            self._mine.inside = False
            with self._changed:
                self._readers -= 1
                if not self._readers:
                    self._changed.notify_all()
