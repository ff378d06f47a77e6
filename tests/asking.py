"""Somebody who asks a daemon, and somebody who sends it events, while a test does something to it."""

from __future__ import annotations

import threading
from typing import Any, Final, Self

from tests.builders import random_log
from tests.daemons import Daemon, World

KNOWN_LINES: Final = {
    "items-00000": [b'{"type":"item.created","item_id":"known","occurred_at":1,"title":"word1 word2"}']
}
"""The item that :class:`Asking` asks for."""


class Asking:
    """Asks for neighbours of an item again and again; ``answers`` counts, ``wrong`` holds what was no answer."""

    def __init__(self, daemon: Daemon) -> None:
        self.answers = 0
        self.wrong: list[Any] = []
        self._daemon = daemon
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._over.wait(0.01):
            code, reply = self._daemon.ask("/query", {"items": ["known"], "k": 5, "seed": 1})
            self.answers += 1
            if code != 200 or not reply["results"] or reply["missing"]:
                self.wrong.append((code, reply))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def send_while(world: World, over: threading.Event) -> None:
    for seed in range(40, 100):
        world.send(random_log(seed, 60))
        if over.wait(0.05):
            return
