"""One process at a time on a directory: locks that end with whoever holds them, however that comes about."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import FacetstreamError, StoreError, StoreLockedError
from streamer.asking import LOCK_FILE, STATE_FILE


@contextmanager
def locked(file: Path, taken: FacetstreamError, denied: Callable[[OSError], FacetstreamError]) -> Iterator[None]:
    """Hold the lock on a file, which is made with its directory where it is not there.

    Raises:
        FacetstreamError: ``taken`` if another process holds it; what ``denied`` makes of it if it cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise denied(error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        yield
    finally:
        os.close(lock)


@contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """One daemon at a time on a data directory, and nobody who changes what is in use beside it.

    Raises:
        StoreLockedError: if a daemon runs on it.
        StoreError: if it cannot be written.
    """
    taken = StoreLockedError(
        f"{data_dir} is held by another process, most likely a running daemon; stop it, or use a reading command"
    )

    def denied(error: OSError) -> StoreError:
        return StoreError(f"cannot write to {data_dir}: {error}; choose another --data-dir")

    with locked(data_dir / LOCK_FILE, taken, denied):
        (data_dir / STATE_FILE).unlink(missing_ok=True)  # of one that was killed
        yield
