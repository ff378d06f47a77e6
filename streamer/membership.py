"""Which shards are ours to write: all of them, or those that a Kafka consumer group gives us."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from streamer.kafka_clients import open_consumer
from streamer.kafka_commits import Commits
from streamer.kafka_group import KafkaGroup

if TYPE_CHECKING:
    from schemas.config import KafkaConfig
    from streamer.sources.base import Partition

__all__ = ["AllShards", "Committer", "KafkaGroup", "Membership", "Owner"]

_CLOSE_MS: Final = 2_000
_FLUSH_S: Final = 2.0


class Owner(Protocol):
    """Who opens and closes shards. Called from the thread that turns the membership."""

    def assign(self, shards: Collection[int], epoch: int) -> None:
        """These are ours from now on. Returns at once: opening takes its time elsewhere.

        None at all are told once, to a member that joined and got none, or none yet. ``epoch`` is the group's
        generation.
        """
        ...

    def revoke(self, shards: Collection[int], deadline_s: float) -> None:
        """Close and release these, and return when that is done, after ``deadline_s`` seconds at the latest."""
        ...

    def lost(self, shards: Collection[int]) -> None:
        """Somebody else may own these already: stop writing them, without a commit."""
        ...


class Membership(Protocol):
    """Says which shards are ours. One thread uses it, but for :meth:`holds`."""

    def turn(self, timeout_s: float) -> None:
        """Tell the owner what changed, for about ``timeout_s`` seconds. Call it every second or more often.

        Raises:
            BrokerError: if we can be a member no longer, or never could.
            ConfigError: if the broker refuses how we want to be one.
        """
        ...

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Tell lag tools how far the store is. Does not wait; a failure is logged, tried again, never raised."""
        ...

    def holds(self, shard: int) -> bool:
        """Whether we may write for this shard now. From any thread."""
        ...

    def close(self) -> None:
        """Commit what :meth:`commit` was told last, and disconnect, without a word to the owner; idempotent.

        A static member keeps its shards until its session times out, so that it finds them when it starts again.
        """
        ...


class Committer:
    """Commits as a group without members does: the broker takes whatever it is told.

    Raises:
        BrokerError: if no broker answers.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._consumer = open_consumer(config, group_id=config.group_id)
        self._commits = Commits(self._consumer._coordinator)  # noqa: SLF001  # KafkaConsumer hides its answers

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """As :meth:`Membership.commit`."""
        self._commits.add(positions)

    def turn(self) -> None:
        """Send what waits; call it now and then."""
        self._commits.turn()

    def close(self) -> None:
        """Commit what waits, within two seconds, and disconnect; idempotent."""
        self._commits.flush(_FLUSH_S)
        self._consumer.close(timeout_ms=_CLOSE_MS)


class AllShards:
    """A :class:`Membership` in which every shard is ours, from the first turn on.

    Args:
        owner: is told once.
        shards: all there are.
        committer: None for a source that keeps no positions.
    """

    def __init__(self, owner: Owner, shards: Collection[int], committer: Committer | None = None) -> None:
        self._owner = owner
        self._shards = frozenset(shards)
        self._committer = committer
        self._told = False
        self._closed = False

    def turn(self, timeout_s: float) -> None:
        """Tell the owner at first, later only wait."""
        if not self._told:
            self._told = True
            self._owner.assign(sorted(self._shards), 0)
            return
        if self._committer is not None:
            self._committer.turn()
        time.sleep(timeout_s)

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """As the protocol says."""
        if self._committer is not None:
            self._committer.commit(positions)

    def holds(self, shard: int) -> bool:
        """Always, of those there are."""
        return shard in self._shards

    def close(self) -> None:
        """As the protocol says."""
        if self._committer is not None and not self._closed:
            self._committer.close()
        self._closed = True
