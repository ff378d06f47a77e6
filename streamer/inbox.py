"""The single door to the writer: a bounded queue of batches, and changes that other threads ask for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from indexer.writer import IndexWriter
from schemas.errors import FacetstreamError

BatchT = TypeVar("BatchT")
ResultT = TypeVar("ResultT")
Change = Callable[[IndexWriter], None]


class InboxClosedError(FacetstreamError):
    """The writer is stopping; a change asked of it will not be made."""


class Inbox(Generic[BatchT]):
    """Batches in order, at most ``room`` of them, and changes between them.

    A change overtakes batches, but never two in a row: a round of many merges would else hold up the batches.

    Args:
        room: batches that may wait; bounds memory.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._batches: deque[BatchT] = deque()
        self._changes: deque[tuple[Change, Callable[[], object]]] = deque()
        self._signal = threading.Condition()
        self._closed = False
        self._changed_last = False
        self._ended = False
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def full(self) -> bool:
        """Whether :meth:`put` would wait."""
        return len(self._batches) >= self._room

    def put(self, batch: BatchT) -> bool:
        """Hand over a batch, waiting while the queue is full. False when the inbox is closed."""
        with self._signal:
            self._signal.wait_for(lambda: self._closed or len(self._batches) < self._room)
            if self._closed:
                return False
            self._batches.append(batch)
            self._signal.notify_all()
            return True

    def end(self, error: BaseException | None = None) -> None:
        """No more batches will come; the first ``error`` is raised to the writer once the queue is empty."""
        with self._signal:
            self._ended = True
            # The reader ends without one when the compactor's error stops it; that must not hide the error.
            self._error = error if self._error is None else self._error
            self._signal.notify_all()

    def call(self, change: Callable[[IndexWriter], ResultT]) -> ResultT:
        """Have the writer's thread make a change, and wait for its result.

        Raises:
            InboxClosedError: if the writer stops first.
        """
        answer: Future[ResultT] = Future()

        def make(writer: IndexWriter) -> None:
            try:
                answer.set_result(change(writer))
            except BaseException as error:
                answer.set_exception(error)
                raise

        with self._signal:
            if self._closed:
                raise InboxClosedError("the writer is stopping")
            self._changes.append((make, answer.cancel))
            self._signal.notify_all()
        try:
            return answer.result()
        except BaseException as error:
            if answer.cancelled():
                raise InboxClosedError("the writer is stopping") from error
            raise

    def take(self, timeout_s: float, *, batches: bool = True) -> BatchT | Change | None:
        """The next change, else the next batch if ``batches``, else None after ``timeout_s``.

        Raises:
            EOFError: when all is taken and no more will come.
        """
        deadline = time.monotonic() + timeout_s
        with self._signal:
            while True:
                batch_next = batches and bool(self._batches)
                if self._changes and not (batch_next and self._changed_last):
                    self._changed_last = True
                    return self._changes.popleft()[0]
                if batch_next:
                    self._changed_last = False
                    batch = self._batches.popleft()
                    self._signal.notify_all()
                    return batch
                if self._ended and not self._batches:
                    if self._error is not None:
                        raise self._error
                    raise EOFError
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._signal.wait(left)

    def close(self) -> None:
        """Refuse everything from now on and let those who wait go."""
        with self._signal:
            self._closed = True
            changes, self._changes = self._changes, deque()
            self._signal.notify_all()
        for _, cancel in changes:
            cancel()
