"""A shard that takes over from one of another generation, whose end it waits for with what it has read."""

from __future__ import annotations

import threading
import time
from typing import Final

import structlog

from schemas.errors import BrokerAwayError
from streamer.shards import Shard

log = structlog.get_logger(__name__)

_AGAIN_S: Final = 1.0


class Succession:
    """Lets a shard serve once the one before it has ended; a broker that is away meanwhile is waited for.

    It is asked for on a thread of its own: until a broker gives its answer may take half a minute.

    Args:
        before: the shard that was told to end.
        after: the one that serves from then on.
        letters_at: as :meth:`streamer.shards.Shard.serve` takes it.
    """

    def __init__(self, before: Shard, after: Shard, letters_at: int | None) -> None:
        self.after = after
        self._before = before
        self._letters_at = letters_at
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._not_before = 0.0

    def turn(self) -> bool:
        """Whether it is over.

        Raises:
            FacetstreamError: if the dead-letter topic cannot be opened.
        """
        if self._thread is None:
            # Where the shard is not ours any more, another's letters may go to the topic: the group will say so.
            if self._before.join(0) and self.after.owned and time.monotonic() >= self._not_before:
                self._error = None
                self._thread = threading.Thread(target=self._serve, name=f"succession-{self.after.number}", daemon=True)
                self._thread.start()
            return False
        if self._thread.is_alive():
            return False
        self._thread = None
        if isinstance(self._error, BrokerAwayError):  # nothing is lost: what is to be written waits, or is read again
            log.warning("succession_waits", shard=self.after.number, reason=str(self._error), again_s=_AGAIN_S)
            self._not_before = time.monotonic() + _AGAIN_S
            return False
        if self._error is not None:
            raise self._error
        return True

    def _serve(self) -> None:
        try:
            self.after.serve(self._letters_at)
        except BaseException as error:  # noqa: BLE001  # the daemon's thread raises it
            self._error = error
