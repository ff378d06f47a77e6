"""Other commands and the daemon that runs on their data directory."""

from __future__ import annotations

import fcntl
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import orjson

from schemas.errors import DependencyError, StoreError, UsageError

STATE_FILE: Final = "daemon.json"
LOCK_FILE: Final = "daemon.lock"
_LOOK_S: Final = 2.0
_LOOK_AGAIN_S: Final = 0.05
_ANSWER_S: Final = 600.0


def running_daemon(data_dir: Path) -> str | None:
    """URL of the daemon that runs on this data directory, if one does.

    Its lock says whether one does, not whether somebody answers: the port of one that was killed may be another's by
    now, and one that is busy may not answer at once.
    """
    if not _locked(data_dir / LOCK_FILE):
        return None
    deadline = time.monotonic() + _LOOK_S
    while True:
        try:
            state = orjson.loads((data_dir / STATE_FILE).read_bytes())
            return str(state["url"])
        except (OSError, ValueError, KeyError, TypeError):  # it has just started
            if time.monotonic() > deadline:
                return None
        time.sleep(_LOOK_AGAIN_S)


def _locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def ask_daemon(url: str, path: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the daemon answers: to GET, or to POST of a document.

    Raises:
        UsageError: if it does not accept the document.
        DependencyError: if it cannot do what was asked, or does not answer.
    """
    body = None if document is None else orjson.dumps(document)
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, body), timeout=_ANSWER_S) as answer:  # noqa: S310  # our own daemon's loopback address
            found: dict[str, Any] = orjson.loads(answer.read())
            return found
    except urllib.error.HTTPError as error:
        with error:
            said = _error_of(error.read()) or str(error)
        if error.code in {400, 404}:
            raise UsageError(said) from None
        raise DependencyError(said) from None
    except (OSError, ValueError, http.client.HTTPException) as error:  # it may end while it answers
        raise StoreError(f"the daemon at {url} did not answer {path}: {error}") from error


def _error_of(body: bytes) -> str | None:
    try:
        return str(orjson.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return None
