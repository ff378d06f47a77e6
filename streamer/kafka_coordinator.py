"""Repairs to how kafka-python 3.0 is a member of a group; without them two members may own a partition at once.

Each override says what fails without it. They lean on names that are not documented, which is why they live in one
place: a new kafka-python is tried against the tests of this module's behaviour first.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener, SubscriptionState
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.errors import FencedInstanceIdError, RebalanceInProgressError
from kafka.protocol.consumer import UNKNOWN_MEMBER_ID

from schemas.errors import BrokerError

if TYPE_CHECKING:
    from kafka import KafkaConsumer


class Coordinator(ConsumerCoordinator):  # type: ignore[misc]  # kafka-python ships no types
    """Membership of a group without a consumer's reading: nothing is fetched, no committed offset is looked up.

    Args:
        consumer: lends its connections; it must have no group itself.
        topic: whose partitions are shared out.
        listener: told of partitions on the network thread.
        options: kafka-python's, of the group.

    Attributes:
        confirmed_at: when the request was sent with which the group last confirmed us, ``time.monotonic`` seconds. From
            then on the group keeps us for the session timeout; the time of the answer would be too late, as a process
            that was stopped in between reads an old one.
        fenced: another member took our ``group_instance_id``.
    """

    def __init__(
        self, consumer: KafkaConsumer, topic: str, listener: AsyncConsumerRebalanceListener, **options: Any
    ) -> None:
        self.confirmed_at = float("-inf")
        self.fenced = False
        self._assignor = CooperativeStickyAssignor()
        subscription = SubscriptionState("none")
        subscription.subscribe(topics=[topic], listener=listener)
        settings = consumer.config | options | {"enable_auto_commit": False, "assignors": [self._assignor]}
        super().__init__(consumer._client, subscription, **settings)  # noqa: SLF001

    @property
    def generation_id(self) -> int:
        """Of the group, as of the last time we joined; -1 if it does not count us in."""
        found: int = self._generation.generation_id
        return found

    @property
    def is_member(self) -> bool:
        """Whether, for all we know, the group counts us in."""
        return not self._generation.is_lost()

    def forget_owned(self) -> None:
        """kafka-python's assignor goes on claiming partitions that were lost, although another may own them by now."""
        self._assignor.member_assignment = None

    def reset_generation(self, member_id: str = UNKNOWN_MEMBER_ID) -> None:
        """Have the loss told when it is found out by joining, too; kafka-python tells it only before it joins."""
        super().reset_generation(member_id)
        self.rejoining = False

    def _process_sync_group_response(self, response: Any, send_time: float) -> Any:
        assignment = super()._process_sync_group_response(response, send_time)
        self.confirmed_at = send_time
        return assignment

    def _handle_heartbeat_response(self, response: Any, send_time: float) -> None:
        """Notice what kafka-python only logs: that we are fenced."""
        try:
            super()._handle_heartbeat_response(response, send_time)
        except RebalanceInProgressError:
            self.confirmed_at = send_time
            raise
        except FencedInstanceIdError:
            self.fenced = True
            raise
        self.confirmed_at = send_time


def know_topic(consumer: KafkaConsumer, topic: str, timeout_s: float) -> None:
    """Wait until the client knows the topic: a leader that does not would take everybody's partitions away.

    Raises:
        BrokerError: if it does not within ``timeout_s``.
    """
    cluster = consumer._client.cluster  # noqa: SLF001
    cluster.set_topics([topic])
    deadline = time.monotonic() + timeout_s
    while not cluster.partitions_for_topic(topic):
        if time.monotonic() > deadline:
            raise BrokerError(
                f"Kafka does not tell the partitions of topic {topic!r}; is it there, and may we read it?"
            )
        time.sleep(0.02)
