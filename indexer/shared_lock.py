"""A lock that readers share and a writer has alone."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from types import TracebackType


class SharedLock:
    """Entered as it is, it is exclusive and re-entrant; :meth:`shared` lets other readers in.

    One who waits for it alone comes before readers who come later. :meth:`shared` may be entered again on the same
    thread, also inside the exclusive lock; the exclusive lock inside :meth:`shared` would wait for itself.
    """

    def __init__(self) -> None:
        self._alone = threading.RLock()
        self._count = threading.Lock()
        self._changed = threading.Condition(self._count)
        self._owner: int | None = None
        self._depth = 0
        self._readers = 0
        self._awaited = False
        self._mine = threading.local()

    def __enter__(self) -> None:
        self._alone.acquire()  # from here on no reader comes in: each takes it for a moment
        self._depth += 1
        if self._depth == 1:
            with self._changed:
                self._awaited = True
                while self._readers:
                    self._changed.wait()
                self._awaited = False
            self._owner = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self._alone.release()

    def shared(self) -> AbstractContextManager[None]:
        """Hold it together with other readers."""
        return _Shared(self)

    def _join(self) -> bool:
        """Come in as a reader; False if this thread is inside already."""
        if self._owner == threading.get_ident() or getattr(self._mine, "inside", False):
            return False
        with self._alone, self._count:
            self._readers += 1
        self._mine.inside = True
        return True

    def _part(self) -> None:
        self._mine.inside = False
        with self._count:
            self._readers -= 1
            if self._awaited and not self._readers:
                self._changed.notify_all()


class _Shared:
    """What :meth:`SharedLock.shared` gives; entered for each request, so not a generator, which takes twice as long."""

    __slots__ = ("_joined", "_lock")

    def __init__(self, lock: SharedLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._joined = self._lock._join()  # noqa: SLF001 (one thing with the lock)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._joined:
            self._lock._part()  # noqa: SLF001
