"""Positions on their way to the group's coordinator, for lag tools: the store's own offsets are the truth."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from indexer.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from kafka.coordinator.consumer import ConsumerCoordinator
    from kafka.future import Future

    from streamer.sources.base import Partition

log = structlog.get_logger(__name__)

_AGAIN_S: Final = 1.0
_LOOK_S: Final = 0.01


class Commits:
    """Sends one commit at a time; what is added meanwhile goes with the next. Used by one thread, never raises.

    Args:
        coordinator: of a member, whose generation fences the commits, or of a consumer that is none.
    """

    def __init__(self, coordinator: ConsumerCoordinator) -> None:
        self._coordinator = coordinator
        self._waiting: dict[TopicPartition, OffsetAndMetadata] = {}
        self._sent: dict[TopicPartition, OffsetAndMetadata] = {}
        self._answer: Future | None = None
        self._again_at = float("-inf")
        self._failed = False

    def add(self, positions: Mapping[Partition, int]) -> None:
        """Have these committed, and send them if nothing is under way."""
        for partition, offset in positions.items():
            self._waiting[TopicPartition(partition.topic, partition.number)] = OffsetAndMetadata(offset, "", -1)
        self.turn()

    def forget(self, shards: Collection[int]) -> None:
        """Do not commit what waits of these: they are another's now."""
        self._waiting = {key: offset for key, offset in self._waiting.items() if key.partition not in shards}

    def turn(self) -> None:
        """Take the answer that came, and send what waits; again a second later what failed."""
        if self._answer is not None:
            if not self._answer.is_done:
                return
            self._settle(self._answer.exception)
        if not self._waiting or time.monotonic() < self._again_at:
            return
        try:
            if self._coordinator.coordinator_unknown():
                self._sent, self._answer = {}, self._coordinator.lookup_coordinator()
                return
            failpoint("commit.before")
            self._sent = dict(self._waiting)
            # Not commit_offsets_async: where the coordinator is lost just now, that takes having found another one for
            # the answer, and does not tell how the commit went.
            self._coordinator._invoke_completed_offset_commit_callbacks()  # noqa: SLF001
            self._answer = self._coordinator._do_commit_offsets_async(self._sent, _answered)  # noqa: SLF001
        except KafkaError as error:
            self._settle(error)

    def flush(self, limit_s: float) -> None:
        """Wait up to ``limit_s`` until all is confirmed."""
        deadline = time.monotonic() + limit_s
        self.turn()
        while self._waiting and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            self.turn()

    def _settle(self, error: BaseException | None) -> None:
        self._answer = None
        if error is not None:
            if not self._failed:  # once for a broker that is away, not once a second
                log.warning("kafka_commit_failed", group=self._coordinator.group_id, error=str(error))
            self._failed, self._again_at = True, time.monotonic() + _AGAIN_S
            return
        if self._sent:
            failpoint("commit.after")
            self._failed = False
        for key, offset in self._sent.items():
            if self._waiting.get(key) == offset:
                del self._waiting[key]


def _answered(_offsets: Any, _answer: Any) -> None:
    """The future tells already."""
