"""A lock that readers share."""

from __future__ import annotations

import threading

from indexer.shared_lock import SharedLock


def test_one_thread_may_enter_again() -> None:
    lock = SharedLock()
    with lock.shared(), lock.shared():
        pass
    with lock, lock.shared(), lock:
        pass


def test_a_reader_that_enters_again_keeps_the_writer_out_until_it_has_left() -> None:
    lock = SharedLock()
    seen: list[str] = []

    def write() -> None:
        with lock:
            seen.append("written")

    writer = threading.Thread(target=write)
    with lock.shared():
        with lock.shared():
            writer.start()
        seen.append("read")
    writer.join(timeout=30)
    assert seen == ["read", "written"]


def test_readers_are_inside_together() -> None:
    lock, both = SharedLock(), threading.Barrier(2)

    def read() -> None:
        with lock.shared():
            both.wait(timeout=30)

    other = threading.Thread(target=read)
    other.start()
    read()
    other.join(timeout=30)
    assert not both.broken
