"""A small Kafka cluster for tests: one controller, which nobody kills, and two brokers, which anybody may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

from kafka.errors import KafkaError

from schemas.config import KafkaConfig
from schemas.errors import BrokerError
from streamer.kafka_clients import open_admin
from tests.kafka.broker import Broker, new_cluster_id
from tests.kafka.records import until

if TYPE_CHECKING:
    from types import TracebackType

CONTROLLER: Final = 1
BROKERS: Final = (2, 3)
_HEAP: Final = "256m"
_HEAL_S: Final = 120.0


class Cluster:
    """Three nodes on loopback, the brokers numbered as in :data:`BROKERS`.

    Attributes:
        brokers: by number; stop, kill, freeze and start them as you like.
    """

    def __init__(self) -> None:
        self._open = ExitStack()
        self.brokers: dict[int, Broker] = {}

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            cluster_id = new_cluster_id()
            controller = opening.enter_context(
                Broker(
                    heap=_HEAP,
                    cluster_id=cluster_id,
                    settings={
                        "process.roles": "controller",
                        "node.id": str(CONTROLLER),
                        "listeners": "CONTROLLER://127.0.0.1:{controller}",
                        "advertised.listeners": "",
                    },
                )
            )
            for number in BROKERS:
                self.brokers[number] = opening.enter_context(
                    Broker(
                        heap=_HEAP,
                        cluster_id=cluster_id,
                        settings={
                            "process.roles": "broker",
                            "node.id": str(number),
                            "listeners": "PLAINTEXT://127.0.0.1:{port}",
                            "controller.quorum.voters": f"{CONTROLLER}@127.0.0.1:{controller.controller_port}",
                            "offsets.topic.replication.factor": "2",
                        },
                    )
                )
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def bootstrap(self) -> str:
        """Both brokers."""
        return ",".join(self.brokers[number].bootstrap for number in BROKERS)

    def heal(self) -> None:
        """Start what was killed, wake what was frozen, and wait until either broker may lead what lies on both."""
        for broker in self.brokers.values():
            if broker.running:
                broker.thaw()
            else:
                broker.start()
        until(lambda: all(map(_knows_all_in_sync, self.brokers.values())), "all replicas to be in sync", _HEAL_S)

    def create_topic(self, name: str, replicas: Mapping[int, Sequence[int]]) -> None:
        """A topic whose partitions lie where told: partition -> brokers, the leader first."""
        admin = open_admin(KafkaConfig(bootstrap_servers=self.bootstrap))
        try:
            placed = {number: list(brokers) for number, brokers in replicas.items()}
            admin.create_topics(
                {name: {"assignments": placed, "configs": {"retention.ms": "-1"}}}, wait_for_metadata=True
            )
        finally:
            admin.close()


def _knows_all_in_sync(broker: Broker) -> bool:
    """Whether, as this broker has it, no replica of any partition lags; one that was just thawed may have it wrong."""
    try:
        admin = open_admin(KafkaConfig(bootstrap_servers=broker.bootstrap))
    except BrokerError:
        return False
    try:
        partitions = [partition for topic in admin.describe_topics() for partition in topic["partitions"]]
    except KafkaError:
        return False
    finally:
        admin.close()
    return all(sorted(each["isr_nodes"]) == sorted(each["replica_nodes"]) for each in partitions)
