"""A real single-node Kafka broker (KRaft) for tests, benchmarks and ``make kafka``.

    python -m tests.kafka.broker [PORT]

starts one, creates the topics ``items``, ``engagements`` and ``facetstream-deadletters``, prints its address and runs
until Ctrl-C. ``KAFKA_BOOTSTRAP=host:port`` makes the tests use a broker that is already there.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from schemas.config import KafkaConfig
from schemas.errors import BrokerError
from streamer.kafka_clients import open_admin
from tests.kafka.jars import NoBrokerError, find_class_path, find_java

START_S: Final = 90.0
STOP_S: Final = 20.0
LOG_TAIL: Final = 6_000

# Topics are tiny and live for one test; what the broker keeps for itself should be too.
_SETTINGS: Final = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "true",  # the default of most brokers: shows that we never make use of it
    "num.partitions": "1",
    "log.retention.ms": "-1",  # events are years old by their timestamps: any other value deletes them within minutes
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",  # tests wait for it
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "2000",  # a member killed by a test is given up soon
    "broker.session.timeout.ms": "3000",  # a killed broker is let in again only when its old session is over
    "broker.heartbeat.interval.ms": "500",
    "log.cleaner.backoff.ms": "200",  # compaction tests wait for the cleaner
    "log.cleaner.dedupe.buffer.size": "8388608",
    "log.initial.task.delay.ms": "500",
    "log.segment.delete.delay.ms": "0",
}


class Broker:
    """One broker on loopback; the data and the port outlive :meth:`stop` and :meth:`kill`, until :meth:`close`.

    Attributes:
        bootstrap: ``host:port`` to connect to.
        controller_port: where it listens as a controller.
        spare_ports: free for further listeners, which ``settings`` may add.
        frozen: from :meth:`freeze` to :meth:`thaw`.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        heap: str = "512m",
        settings: Mapping[str, str] | None = None,
        cluster_id: str | None = None,
        format_with: Sequence[str] = (),
    ) -> None:
        """Prepare a broker without starting it.

        Args:
            port: to listen on; None picks a free one.
            heap: of the JVM.
            settings: override the broker's; their values may name ``{port}``, ``{controller}``, ``{spare[0]}`` to
                ``{spare[2]}`` and ``{folder}``. An empty one takes a setting away.
            cluster_id: of the cluster it is a node of; None makes one up.
            format_with: further arguments of kafka-storage format.

        Raises:
            NoBrokerError: if Java, Maven or the jars are not to be had.
        """
        self._java, self._class_path, self._heap = find_java(), find_class_path(), heap
        self._folder = Path(tempfile.mkdtemp(prefix="facetstream-kafka-"))
        # A session of its own, as the broker has: Ctrl-C must reach us alone, so that clients close before it goes.
        self._guard = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("guard.py")), str(self._folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._settings, self._wanted_port = dict(settings or {}), port
        self._cluster_id = cluster_id or new_cluster_id()
        self._format_with = list(format_with)
        self.bootstrap = ""
        self.controller_port = 0
        self.spare_ports: list[int] = []
        self.frozen = False

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start on the kept data and port, or format first; returns when the broker answers.

        Raises:
            RuntimeError: if it does not within ``START_S``, with the end of its log.
        """
        if not self.bootstrap:
            self._format()
        java = [self._java, f"-Xmx{self._heap}", f"-Xms{self._heap}", "-XX:+UseSerialGC", "-cp", self._class_path]
        command = [
            *java,
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "kafka.Kafka",
            str(self._folder / "server.properties"),
        ]
        with self._log.open("ab") as log:
            # The shell notes its pid, which becomes the broker's, before the broker exists: whenever the owner dies,
            # the guard finds either no broker or its pid.
            self._process = subprocess.Popen(
                ["/bin/sh", "-ec", 'echo $$ > "$0/pid"; exec "$@"', str(self._folder), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_until_it_answers()
        return self

    def stop(self) -> None:
        """Stop it in good order (SIGTERM, then SIGKILL); data and port stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)  # a broker frozen by a test must wake up to stop
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL: what a crash or a power cut of the process looks like; data and port stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process, self.frozen = None, False
            (self._folder / "pid").unlink(missing_ok=True)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, until :meth:`thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """Undo :meth:`freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self.frozen = False

    def restart(self) -> None:
        """Stop and start again on the same data and port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove its folder; idempotent."""
        self.stop()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait(STOP_S)

    def wait(self) -> None:
        """Until it ends by itself."""
        if self._process is not None:
            self._process.wait()

    def log_tail(self) -> str:
        """The end of the broker's log."""
        return self._log.read_bytes()[-LOG_TAIL:].decode(errors="replace") if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self._folder / "broker.log"

    def _format(self) -> None:
        port, self.controller_port, *self.spare_ports = _free_ports(self._wanted_port)
        names = {
            "port": port,
            "controller": self.controller_port,
            "spare": self.spare_ports,
            "folder": self._folder,
        }
        settings = _SETTINGS | {
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "log.dirs": str(self._folder / "data"),
        }
        settings |= {key: value.format(**names) for key, value in self._settings.items()}
        properties = self._folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items() if value))
        told = subprocess.run(
            [self._java, "-XX:TieredStopAtLevel=1", "-cp", self._class_path, "kafka.tools.StorageTool", "format",
             f"--cluster-id={self._cluster_id}", f"--config={properties}", *self._format_with],
            capture_output=True, text=True, check=False, timeout=START_S,
        )  # fmt: skip
        if told.returncode:
            raise RuntimeError(f"cannot format the broker's storage:\n{(told.stdout + told.stderr)[-LOG_TAIL:]}")
        self.bootstrap = f"127.0.0.1:{port}"

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        is_broker = "broker" in self._settings.get("process.roles", "broker")
        host, port = "127.0.0.1", self.bootstrap.split(":")[1] if is_broker else self.controller_port
        while time.monotonic() < deadline and self.running:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.05)
                continue
            if not is_broker:
                return
            try:
                open_admin(KafkaConfig(bootstrap_servers=self.bootstrap, connect_timeout_s=2)).close()
            except BrokerError:
                continue
            return
        status = "still starting" if self.running else f"ended with {self._process.returncode}"
        tail = self.log_tail()
        self.kill()
        raise RuntimeError(
            f"the Kafka broker did not answer within {START_S:g} s ({status}); the end of its log:\n{tail}"
        )


class GivenBroker:
    """A broker that somebody else runs, named by ``KAFKA_BOOTSTRAP``."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap


def new_cluster_id() -> str:
    """As kafka-storage random-uuid makes them; may begin with "-": only with "=" is it taken for a value."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _free_ports(wanted: int | None) -> list[int]:
    with contextlib.ExitStack() as open_at_once:  # so that they differ
        sockets = [open_at_once.enter_context(socket.socket()) for _ in range(5)]
        for each, port in zip(sockets, (wanted or 0, 0, 0, 0, 0), strict=True):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", port))
        return [each.getsockname()[1] for each in sockets]


def create_topics(bootstrap: str, partitions: Mapping[str, int], **configs: str) -> None:
    """Create topics (``retention_ms="-1"`` becomes ``retention.ms``) and wait until they can be used."""
    settings = {key.replace("_", "."): value for key, value in configs.items()}
    admin = open_admin(KafkaConfig(bootstrap_servers=bootstrap))
    try:
        admin.create_topics(
            {
                name: {"num_partitions": n, "replication_factor": 1, "configs": settings}
                for name, n in partitions.items()
            },
            wait_for_metadata=True,
        )
    finally:
        admin.close()


def main() -> int:
    """Run a broker until Ctrl-C or SIGTERM."""
    names = KafkaConfig()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Broker(port=int(sys.argv[1]) if len(sys.argv) > 1 else None) as broker:
            topics = {names.items_topic: 4, names.engagements_topic: 4, names.dead_letters_topic: 1}
            create_topics(broker.bootstrap, topics, retention_ms="-1")
            sys.stdout.write(
                f"Kafka is ready at {broker.bootstrap} with the topics {', '.join(topics)}; Ctrl-C stops it.\n"
                f"  export FACETSTREAM_KAFKA__BOOTSTRAP_SERVERS={broker.bootstrap}\n"
            )
            sys.stdout.flush()
            broker.wait()
            sys.stderr.write(broker.log_tail())
            return 1
    except NoBrokerError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    except KeyboardInterrupt:
        return 0


def given_or_own() -> Broker | GivenBroker:
    """The broker ``KAFKA_BOOTSTRAP`` names, or a fresh one, started; the caller closes a :class:`Broker`."""
    given = os.environ.get("KAFKA_BOOTSTRAP")
    return GivenBroker(given) if given else Broker().__enter__()


if __name__ == "__main__":
    raise SystemExit(main())
