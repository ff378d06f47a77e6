"""Records that come fast are gathered by the broker, so that each fetch, and each batch after it, brings more of them.

A fetch is answered as soon as there is anything, which is right for a record that comes alone. Where hundreds come in
the time that a batch takes, it means many small batches, and everything that a batch costs however small it is: the
broker's answer, the hand-over between threads, one atomic write.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from streamer.kafka_clients import fetch_when, longest_fetch_wait_ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka import KafkaConsumer

    from schemas.config import KafkaConfig

_FAST: Final = 1_000.0
"""Records a second from which on it pays."""
_ENOUGH_BYTES: Final = 1 << 18
"""About a thousand records: more would make none of them much cheaper."""
_QUIET_S: Final = 0.25


class Gathering:
    """Tells the broker how long to wait for more, by how fast records came lately.

    Args:
        consumer: whose fetches.
        config: ``gather_ms`` says how long the broker gathers; 0: never.
        clock: monotonic seconds.

    Attributes:
        active: whether it gathers now.
    """

    def __init__(
        self, consumer: KafkaConsumer, config: KafkaConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._consumer = consumer
        self._clock = clock
        self._wait_ms = config.gather_ms
        self._idle_ms = longest_fetch_wait_ms(config)
        self._came_at = clock()
        self.active = False

    def note(self, records: int) -> None:
        """A poll brought that many. What is set here holds from the next fetch on."""
        now = self._clock()
        since_s = now - self._came_at
        if records:
            self._came_at = now
        elif since_s < _QUIET_S:
            return
        active = bool(self._wait_ms) and records > _FAST * since_s
        if active != self.active:
            self.active = active
            if active:
                fetch_when(self._consumer, min_bytes=_ENOUGH_BYTES, wait_ms=self._wait_ms)
            else:
                # Else an idle topic would be asked dozens of times a second.
                fetch_when(self._consumer, min_bytes=1, wait_ms=self._idle_ms)
