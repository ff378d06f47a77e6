"""Waiting for the daemon to switch generations, shared by commands that ask for it."""

from __future__ import annotations

import time
from typing import Final

from schemas.errors import StoreError
from streamer.asking import ask_daemon
from streamer.cli._context import progress_bar

_ASK_EVERY_S: Final = 0.2


def wait_for_switch(url: str, name: str) -> None:
    """Wait until a daemon that was asked to promote a generation has done so.

    Raises:
        StoreError: if it could not, or does not answer.
    """
    with progress_bar() as bar:
        task = bar.add_task(f"records {name} is behind", total=None)
        while True:
            status = ask_daemon(url, "/status")
            if status["generation"] == name:
                return
            promotion = status["promotion"] or {}
            if promotion.get("generation") != name:
                raise StoreError(
                    f"generation {name} was given up or gave its place to another meanwhile; {status['generation']} "
                    "is in use: see `generation list` and the daemon's log"
                )
            if promotion.get("state") == "failed":
                raise StoreError(
                    f"generation {name} was not promoted: {promotion['error']}; {status['generation']} goes on"
                )
            behind = sum(sum(row.get("lag", {}).values()) for row in promotion.get("shards", []))
            bar.update(task, completed=behind)
            time.sleep(_ASK_EVERY_S)
