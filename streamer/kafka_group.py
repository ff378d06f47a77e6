"""A Kafka consumer group that shares the shards out among processes: one member of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, Final

import structlog
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.errors import FencedInstanceIdError, InconsistentGroupProtocolError, InvalidSessionTimeoutError, KafkaError
from kafka.future import Future

from schemas.errors import BrokerError, ConfigError
from streamer.kafka_clients import open_consumer
from streamer.kafka_commits import Commits
from streamer.kafka_coordinator import Coordinator, know_topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.config import KafkaConfig
    from streamer.membership import Owner
    from streamer.sources.base import Partition

log = structlog.get_logger(__name__)

_LOOK_S: Final = 0.05
_CLOSE_MS: Final = 2_000
_FLUSH_S: Final = 2.0
_REVOKED_FLUSH_S: Final = 0.5
_HEARTBEAT_AT_MOST_S: Final = 3.0
_TURN_AT_LEAST_S: Final = 60.0


class _What(StrEnum):
    ASSIGN = "assign"
    REVOKE = "revoke"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class _Change:
    what: _What
    shards: frozenset[int]
    epoch: int
    done: Future


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Hands changes from the network thread to the one that turns, and waits there without holding up heartbeats."""

    def __init__(self) -> None:
        # Not SimpleQueue: a signal that interrupts its get() as the time runs out makes it wait for ever.
        self.changes: Queue[_Change] = Queue()
        self.coordinator: Coordinator | None = None
        self.closed = False

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._hand_over(_What.ASSIGN, assigned)

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._hand_over(_What.REVOKE, revoked)

    async def on_partitions_lost(self, lost: Any) -> None:
        await self._hand_over(_What.LOST, lost)

    async def _hand_over(self, what: _What, partitions: Any) -> None:
        assert self.coordinator is not None
        if what is _What.LOST:
            self.coordinator.forget_owned()
        if self.closed:
            return
        shards = frozenset(partition.partition for partition in partitions)
        change = _Change(what, shards, self.coordinator.generation_id, Future())
        self.changes.put(change)
        await change.done


class KafkaGroup:
    """A :class:`Membership` of a consumer group: cooperative, sticky, and static by ``instance_id``.

    Heartbeats go out on kafka-python's own thread, whatever the owner does meanwhile. A broker that is away is waited
    out: we stay a member, and hold our shards until the session timeout has passed without a word from it.

    Args:
        config: broker, topics, ``group_id`` and ``session_timeout_s``.
        owner: is told by :meth:`turn`.
        instance_id: which member this is, across restarts. Of two with the same one the older is fenced.

    Raises:
        BrokerError: if no broker answers, or it does not know the items topic.
    """

    def __init__(self, config: KafkaConfig, owner: Owner, instance_id: str) -> None:
        self._config, self._owner, self._instance_id = config, owner, instance_id
        session_s = config.session_timeout_s
        # A request to a broker that froze must be given up while another can still be found to keep us in the group.
        request_s = min(config.request_timeout_s, session_s / 3)
        self._consumer = open_consumer(config.model_copy(update={"request_timeout_s": request_s}))
        self._listener = _Listener()
        try:
            know_topic(self._consumer, config.items_topic, config.connect_timeout_s)
            self._coordinator = self._listener.coordinator = Coordinator(
                self._consumer,
                config.items_topic,
                self._listener,
                group_id=config.group_id,
                group_instance_id=instance_id,
                session_timeout_ms=int(session_s * 1000),
                heartbeat_interval_ms=int(min(_HEARTBEAT_AT_MOST_S, session_s / 6) * 1000),
                # For how long the group waits for us to join, and we for a turn. Longer than a session: otherwise a
                # static member that is about to rejoin would be passed over with what it owned when it joined last.
                max_poll_interval_ms=int(max(_TURN_AT_LEAST_S, 3 * session_s) * 1000),
            )
        except BaseException:
            self._consumer.close(timeout_ms=_CLOSE_MS)
            raise
        self._commits = Commits(self._coordinator)
        self._joining: Future | None = None
        self._held: frozenset[int] = frozenset()
        self._started = self._told = False
        self._away = False
        self._closed = False

    @property
    def joined(self) -> bool:
        """Whether the group counts us in at the moment, with shards or without."""
        return self._coordinator.is_member and self._lease_left_s() > 0

    def turn(self, timeout_s: float) -> None:
        """As the protocol says; several changes may be told in one turn."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._keep_joined()
            self._commits.turn()
            left = deadline - time.monotonic()
            try:
                change = self._listener.changes.get(timeout=max(0.0, min(left, _LOOK_S)))
            except Empty:
                if left <= 0:
                    return
            else:
                self._tell(change)

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """As the protocol says. The group refuses it from a member whose shards it gave to others."""
        self._commits.add(positions)

    def holds(self, shard: int) -> bool:
        """Whether the shard is ours, and the group has confirmed us within the session timeout."""
        return shard in self._held and self.joined

    def close(self) -> None:
        """As the protocol says."""
        if self._closed:
            return
        self._closed = self._listener.closed = True
        if self._coordinator.is_member:
            self._commits.flush(_FLUSH_S)
        self._held = frozenset()
        try:
            self._coordinator.close(autocommit=False, timeout_ms=_CLOSE_MS)
        finally:
            self._consumer.close(timeout_ms=_CLOSE_MS)

    def _lease_left_s(self) -> float:
        return self._coordinator.confirmed_at + self._config.session_timeout_s - time.monotonic()

    def _keep_joined(self) -> None:
        coordinator = self._coordinator
        if self._joining is not None and self._joining.is_done:
            error, self._joining = self._joining.exception, None
            if error is not None:
                self._joining_failed(error)
            elif not self._started:
                self._started = True
                # A static member that died while it gave shards up is handed the rest when it starts again, and the
                # group waits for ever for it to say that the others are free. Joining once more says so.
                coordinator.request_rejoin()
                if not self._told:
                    self._owner.assign([], coordinator.generation_id)
        if coordinator.fenced:
            self._joining_failed(FencedInstanceIdError())
        heart_stopped = False
        try:
            coordinator.poll_heartbeat()
        except Exception as error:  # noqa: BLE001  # of the heartbeat coroutine, whatever it was; it is started anew
            log.warning("kafka_heartbeat_restarted", group=self._config.group_id, error=repr(error))
            heart_stopped = True
        if self._joining is None and (coordinator.need_rejoin() or heart_stopped):
            self._joining = self._consumer._manager.call_soon(coordinator.ensure_active_group_async)  # noqa: SLF001
        self._note_lease()

    def _joining_failed(self, error: BaseException) -> None:
        where = f"group {self._config.group_id!r} at {self._config.bootstrap_servers}"
        if isinstance(error, KafkaError) and error.retriable:
            log.warning("kafka_join_retried", group=self._config.group_id, error=str(error))
            return
        held, self._held = self._held, frozenset()
        if held:
            self._owner.lost(sorted(held))
        if isinstance(error, FencedInstanceIdError):
            raise BrokerError(
                f"another process joined {where} as {self._instance_id!r}, and takes our place: two use the same "
                "kafka.group_instance_id; give each its own"
            ) from error
        if isinstance(error, InvalidSessionTimeoutError):
            raise ConfigError(
                f"kafka.session_timeout_s is {self._config.session_timeout_s:g}, which {where} does not allow; choose "
                "one between the broker's group.min.session.timeout.ms (6 s unless set) and "
                "group.max.session.timeout.ms (30 min)"
            ) from error
        if isinstance(error, InconsistentGroupProtocolError):
            raise BrokerError(
                f"{where} has members of another kind, that share partitions out in another way; set kafka.group_id to "
                "a name that only these processes use"
            ) from error
        if isinstance(error, KafkaError):
            raise BrokerError(f"cannot be a member of {where}: {error!r}") from error
        raise error

    def _tell(self, change: _Change) -> None:
        self._told = True
        try:
            if change.what is _What.ASSIGN:
                self._held |= change.shards
                self._owner.assign(sorted(change.shards), change.epoch)
            elif change.what is _What.LOST:
                self._held -= change.shards
                self._commits.forget(change.shards)
                self._owner.lost(sorted(change.shards))
            else:
                self._owner.revoke(sorted(change.shards), self._config.session_timeout_s / 2)
                self._held -= change.shards
                self._commits.flush(_REVOKED_FLUSH_S)
                self._commits.forget(change.shards)
        finally:
            self._consumer._net.call_soon_threadsafe(lambda: change.done.success(None))  # noqa: SLF001

    def _note_lease(self) -> None:
        away = bool(self._held) and self._lease_left_s() <= 0
        if away != self._away:
            self._away = away
            log.warning("kafka_group_is_away" if away else "kafka_group_is_back", group=self._config.group_id)
