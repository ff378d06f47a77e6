"""Repairs to how kafka-python 3.0 connects; without them a wrong password looks like a broker that is away.

Each override says what fails without it. They lean on names that are not documented, which is why they live in one
place: a new kafka-python is tried against the tests of this module's behaviour first.
"""

from __future__ import annotations

import re
import ssl
import time
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from kafka.errors import AuthorizationError, KafkaConnectionError, KafkaError, SaslAuthenticationFailedError
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport

if TYPE_CHECKING:
    import socket


class UntrustedError(KafkaError):  # type: ignore[misc]  # kafka-python ships no types
    """The broker's certificate is not of an authority we trust, or not for the name we called."""


class CertificateRefusedError(KafkaError):  # type: ignore[misc]
    """The broker does not take our certificate, or wants one and we have none."""


REFUSALS: Final = (SaslAuthenticationFailedError, AuthorizationError, UntrustedError, CertificateRefusedError)
# TLS 1.3 ends its handshake before the broker has looked at our certificate: the alert meets the first request.
_CERTIFICATE_ALERT: Final = re.compile(
    r"ALERT_\w*CERTIFICATE|CERTIFICATE_REQUIRED|ALERT_UNKNOWN_CA|ALERT_ACCESS_DENIED"
)
DIRECTLY: Final = "direct://"
_SETUP_AT_MOST_MS: Final = 10_000


class _Loop(NetworkSelector):  # type: ignore[misc]
    """An event loop that closes its connections when it ends.

    kafka-python leaves a socket open whose connection has something to send, or is being made, at that moment.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.sockets: WeakSet[socket.socket] = WeakSet()

    def close(self) -> None:
        super().close()  # returns when the network thread has ended: nobody uses the sockets any more
        for each in list(self.sockets):
            each.close()


class _DirectSocket(KafkaNetSocket):  # type: ignore[misc]
    """A plain connection, found by the "proxy" address :data:`DIRECTLY`, that is closed when it fails.

    kafka-python drops the socket of a refused connection without closing it; a broker that is away for an hour would
    leave thousands to the garbage collector.
    """

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: Any, sockaddr: Any, timeout_at: float | None = None) -> Any:
        net.sockets.add(sock)
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


class Connections(KafkaConnectionManager):  # type: ignore[misc]
    """Connections that remember why they failed.

    Attributes:
        failure: why a connection could not be made: a refusal if there was one, else the first failure, as the last
            attempts fail for lack of time. None if none failed.
    """

    failure: Exception | None = None
    _longest_ms = 0.0

    def __init__(self, net: NetworkSelector, **settings: Any) -> None:
        super().__init__(net, **settings)
        self._addresses = self.cluster.bootstrap_brokers()
        self.cluster.bootstrap_brokers = self._least_failed

    def _least_failed(self) -> list[Any]:
        """The addresses to try next.

        kafka-python draws lots among all, and may draw a frozen one until its time is over.
        """
        failures = [self._backoff.get(address.node_id, (0,))[0] for address in self._addresses]
        return [address for address, failed in zip(self._addresses, failures, strict=True) if failed == min(failures)]

    def least_loaded_node(self) -> Any:
        """Prefer a broker that has not failed since it last answered.

        kafka-python draws lots among those that it is not connected to, and waits for a frozen one again and again,
        longer each time.
        """
        chosen = super().least_loaded_node()
        if chosen in self._backoff:
            for broker in self.cluster.brokers():
                connection = self._conns.get(broker.node_id)
                if broker.node_id not in self._backoff and not (connection and connection.paused):
                    return broker.node_id
        return chosen

    def get_connection(self, node_id: Any, **options: Any) -> Any:
        """Give up when one side refused the other before anything ever worked.

        kafka-python tries again until its time is over, and then says only that it is over.
        """
        if isinstance(self.failure, REFUSALS) and not self.bootstrapped:
            raise self.failure
        addresses = len(self._addresses)
        if self.cluster.is_bootstrap(node_id) and addresses > 1 and "timeout_ms" in options:
            # kafka-python spends all its time on the first address that accepts and stays silent, as a frozen one does
            self._longest_ms = self._longest_ms or options["timeout_ms"] / (2 * addresses)
            options["timeout_ms"] = min(options["timeout_ms"], self._longest_ms)
        connection = super().get_connection(node_id, **options)
        connection.init_future.add_errback(self._remember)
        return connection

    def _remember(self, failure: Exception) -> None:
        if self.ssl_enabled and not isinstance(failure, REFUSALS) and _CERTIFICATE_ALERT.search(str(failure)):
            failure = CertificateRefusedError(str(failure))
        if self.failure is None or isinstance(failure, REFUSALS):
            self.failure = failure

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        """Give a TLS handshake its deadline, and close the socket when it fails.

        kafka-python waits for ever for a peer that accepts the connection and stays silent.
        """
        if not self.ssl_enabled:
            return await super()._build_transport(node, timeout_at=timeout_at)
        options, proxy = self.config["socket_options"], self.config["proxy_url"]
        sock = await create_connection(self._net, node.host, node.port, options, proxy_url=proxy, timeout_at=timeout_at)
        transport = KafkaSSLTransport(self._net, sock, host=node.host, ssl_context=self.config["ssl_context"])
        self._net.sockets.add(transport._sock)  # noqa: SLF001  # TLS has put its own in the place of the other
        left_ms = None if timeout_at is None else max(0.0, timeout_at - time.monotonic()) * 1000
        try:
            await self.wait_for(self.call_soon(transport.handshake), left_ms)
        except Exception as error:
            transport.abort(error)
            kind = UntrustedError if isinstance(error, ssl.SSLCertVerificationError) else KafkaConnectionError
            raise kind(f"TLS handshake failed: {error}") from error
        return transport


def make_client(**settings: Any) -> KafkaNetClient:
    """What kafka-python's ``kafka_client`` setting takes: a client on :class:`Connections`.

    Consumer and producer accept ``allow_auto_create_topics`` but never hand it on: their requests for metadata would
    create whatever topic they name. Here it is off for all.
    """
    # What waits for a connection has no deadline of its own; kafka-python would give later attempts up to 30 s.
    setup_ms = min(_SETUP_AT_MOST_MS, settings.get("request_timeout_ms", _SETUP_AT_MOST_MS))
    settings |= {"socket_connection_setup_timeout_ms": setup_ms, "socket_connection_setup_timeout_max_ms": setup_ms}
    net = _Loop(**settings)
    client = KafkaNetClient(net, Connections(net, **settings), **settings)
    client.cluster.config["allow_auto_create_topics"] = False
    return client
