"""A producer that leaves the processor to what is measured: record batches are put together from prepared records.

kafka-python's takes some 80 microseconds of processor time for a record, more than the index does. This one speaks the
same protocol for the one case that benchmarks have: partition 0 of each topic, acks=all, no compression, several
requests in flight on one connection.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from crc32c import crc32c
from kafka.protocol.producer import ProduceRequest, ProduceResponse

from benchmarks.apart import ApartError

_VERSION: Final = 7  # all brokers from 2.1 on
_TIMEOUT_S: Final = 60.0
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")  # of a record batch, KIP-98
_AFTER_LENGTH: Final = 12
_AFTER_CRC: Final = 21


def prepared(key: bytes | None, value: bytes) -> bytes:
    """A record but for its length, attributes, time and offset."""
    return (_varint(-1) if key is None else _varint(len(key)) + key) + _varint(len(value)) + value + _varint(0)


def record_batch(records: Sequence[bytes], now_ms: int) -> bytes:
    """A record batch, format 2, of :func:`prepared` records that all have the same time."""
    body = b"".join([part for place, record in enumerate(records) for part in _framed(place, record)])
    last = len(records) - 1
    size = _HEADER.size + len(body) - _AFTER_LENGTH
    header = bytearray(_HEADER.pack(0, size, -1, 2, 0, 0, last, now_ms, now_ms, -1, -1, -1, len(records)))
    struct.pack_into(">I", header, _AFTER_CRC - 4, crc32c(body, crc32c(bytes(header[_AFTER_CRC:]))))
    return bytes(header) + body


class Sender:
    """One connection to the broker that leads partition 0 of some topics. For one thread.

    Attributes:
        offsets: topic -> offset of each record sent to it, once confirmed.
    """

    def __init__(self, bootstrap: str) -> None:
        host, _, port = bootstrap.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), _TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._waiting: deque[dict[str, int]] = deque()
        self._received = bytearray()
        self.offsets: dict[str, list[int]] = {}

    def send(self, batches: Mapping[str, Sequence[bytes]]) -> None:
        """Send :func:`prepared` records to topics, and take in what is confirmed by now."""
        now_ms = time.time_ns() // 1_000_000
        topics = [
            ProduceRequest.TopicProduceData(
                version=_VERSION,
                name=topic,
                partition_data=[
                    ProduceRequest.TopicProduceData.PartitionProduceData(
                        version=_VERSION, index=0, records=record_batch(records, now_ms)
                    )
                ],
            )
            for topic, records in batches.items()
        ]
        request = ProduceRequest(
            version=_VERSION, transactional_id=None, acks=-1, timeout_ms=int(_TIMEOUT_S * 1_000), topic_data=topics
        )
        request.with_header(client_id="benchmark")  # answers come in order: they need no numbers
        self._socket.sendall(request.encode(version=_VERSION, header=True, framed=True))
        self._waiting.append({topic: len(records) for topic, records in batches.items()})
        while select.select([self._socket], [], [], 0)[0]:
            self._receive()

    def flush(self) -> None:
        """Wait until everything is confirmed.

        Raises:
            ApartError: if the broker refuses something, or goes away.
            TimeoutError: if it does not answer.
        """
        while self._waiting:
            self._receive()

    def _receive(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ApartError("the broker has closed the producer's connection")
        self._received += data
        while len(self._received) >= 4 and len(self._received) >= 4 + (size := self._size()):
            self._confirm(bytes(self._received[4 : 4 + size]))
            del self._received[: 4 + size]

    def _size(self) -> int:
        return int.from_bytes(self._received[:4], "big")

    def _confirm(self, answer: bytes) -> None:
        decoded: Any = ProduceResponse.decode(answer, version=_VERSION, header=True)
        sent = self._waiting.popleft()
        for topic in decoded.responses:
            (partition,) = topic.partition_responses
            if partition.error_code:
                raise ApartError(f"the broker refused records of {topic.name}: error {partition.error_code}")
            first = partition.base_offset
            self.offsets.setdefault(topic.name, []).extend(range(first, first + sent[topic.name]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


def _varint(value: int) -> bytes:
    """Zigzag and base 128, as in records."""
    left = (value << 1) ^ (value >> 63)
    out = bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


_VARINTS: Final = [_varint(number) for number in range(1 << 14)]


def _framed(place: int, record: bytes) -> tuple[bytes, bytes, bytes]:
    """Length, then attributes, time and offset, none of which but the last differs from the batch's, then the rest."""
    head = b"\0\0" + (_VARINTS[place] if place < len(_VARINTS) else _varint(place))
    size = len(head) + len(record)
    return (_VARINTS[size] if size < len(_VARINTS) else _varint(size), head, record)
