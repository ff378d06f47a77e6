"""The door to the writer: bounded, in order, and nobody waits at it for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from streamer.inbox import Inbox, InboxClosedError

WRITER: Any = object()
"""Stands for the writer that a change is given; these changes do not use it."""


def spawn(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run on a thread; its result or its error ends up in the list."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(work())
        except Exception as error:  # noqa: BLE001  # the test looks at it
            out.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, out


def take(inbox: Inbox[int], **options: Any) -> Any:
    return inbox.take(10, **options)


def test_batches_come_out_in_order() -> None:
    inbox = Inbox[int](3)
    for batch in (1, 2, 3):
        assert inbox.put(batch)
    assert inbox.full
    assert [take(inbox) for _ in range(3)] == [1, 2, 3]
    assert inbox.take(0) is None


def test_a_full_inbox_makes_the_reader_wait_until_there_is_room() -> None:
    inbox = Inbox[int](1)
    inbox.put(1)
    thread, out = spawn(lambda: inbox.put(2))
    assert take(inbox) == 1
    assert take(inbox) == 2
    thread.join(10)
    assert out == [True]


def test_closing_lets_a_waiting_reader_go_and_refuses_the_rest() -> None:
    inbox = Inbox[int](1)
    inbox.put(1)
    thread, out = spawn(lambda: inbox.put(2))
    inbox.close()
    thread.join(10)
    assert out == [False]
    assert not inbox.put(3)
    with pytest.raises(InboxClosedError):
        inbox.call(lambda _: None)


def test_a_change_overtakes_batches_and_its_result_comes_back() -> None:
    inbox = Inbox[int](2)
    inbox.put(1)
    thread, out = spawn(lambda: inbox.call(lambda writer: writer is WRITER))
    while len(inbox._changes) == 0:
        thread.join(0.001)
    change = take(inbox)
    assert callable(change)
    change(WRITER)
    thread.join(10)
    assert out == [True]
    assert take(inbox) == 1


def test_a_change_that_fails_fails_for_the_writer_and_for_who_asked() -> None:
    inbox = Inbox[int](1)

    def fail(_: Any) -> None:
        raise ValueError("no room")

    thread, out = spawn(lambda: inbox.call(fail))
    change = take(inbox)
    with pytest.raises(ValueError, match="no room"):
        change(WRITER)
    thread.join(10)
    assert isinstance(out[0], ValueError)


def test_closing_cancels_changes_that_were_not_made() -> None:
    inbox = Inbox[int](1)
    thread, out = spawn(lambda: inbox.call(lambda _: 1))
    while len(inbox._changes) == 0:
        thread.join(0.001)
    inbox.close()
    thread.join(10)
    assert isinstance(out[0], InboxClosedError)


def test_batches_wait_while_only_changes_are_wanted() -> None:
    inbox = Inbox[int](1)
    inbox.put(1)
    assert inbox.take(0, batches=False) is None
    assert take(inbox) == 1


def test_the_end_is_told_once_everything_is_taken() -> None:
    inbox = Inbox[int](2)
    inbox.put(1)
    inbox.end()
    assert inbox.take(0, batches=False) is None
    assert take(inbox) == 1
    with pytest.raises(EOFError):
        take(inbox)


def test_what_went_wrong_is_raised_once_everything_is_taken() -> None:
    inbox = Inbox[int](2)
    inbox.put(1)
    inbox.end(ValueError("broker"))
    assert take(inbox) == 1
    with pytest.raises(ValueError, match="broker"):
        take(inbox)


def test_the_first_error_is_kept_when_the_others_end_because_of_it() -> None:
    inbox = Inbox[int](2)
    inbox.end(ValueError("first"))
    inbox.end(ValueError("second"))
    inbox.end()
    with pytest.raises(ValueError, match="first"):
        take(inbox)
