"""Events without end: chunk after chunk, with everything in it that an index has to get right."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from schemas.config import KafkaConfig
from streamer.eventlog_format import partition_of
from streamer.kafka_clients import close_producer, open_producer

SPAN_MS = 1_000_000
_WINDOW = 500
_STEP = 60


class Feed:
    """Makes the events of a chunk from its number alone, and sends them.

    Items come, change and go in a window that moves on, so that leaves grow, split, shrink and merge; some are all
    alike, so that a leaf cannot be split. Engagements come late, early and for items that never come; some records are
    no events at all. Event times of a chunk end before those of the next begin: partitions are read in event time as
    far as they are there, and here the order must not depend on how much of them was there when they were read. Within
    a chunk it does: one that is sent while a daemon reads must be of one stream.
    """

    def __init__(self, seed: int, partitions: int) -> None:
        self._seed = seed
        self._partitions = partitions
        self.chunks = 0
        self.records = 0

    def send(self, kafka: KafkaConfig, events: int, *, live: bool = False) -> None:
        """Produce the next chunk; of one that is read as it comes, only what happens to items."""
        topics = {"items": kafka.items_topic, "engagements": kafka.engagements_topic}
        producer = open_producer(kafka, linger_ms=5)
        try:
            for stream, item_id, at, value in self._chunk(events):
                if live and stream != "items":
                    continue
                self.records += 1
                place = {"partition": partition_of(item_id, self._partitions), "timestamp_ms": at}
                producer.send(topics[stream], value, item_id.encode(), **place)
            producer.flush(60)
        finally:
            close_producer(producer, 5)
        self.chunks += 1

    def _chunk(self, events: int) -> Iterator[tuple[str, str, int, bytes | None]]:
        rng = np.random.default_rng([self._seed, self.chunks])
        first, begin = self.chunks * _STEP, 1_000_000_000_000 + self.chunks * SPAN_MS
        kinds = ["create", "update", "delete", "tombstone", "alike", "click", "bad"]
        chances = [0.22, 0.08, 0.1, 0.02, 0.04, 0.5, 0.04]
        for number, what in enumerate(rng.choice(kinds, size=events, p=chances).tolist()):
            item = f"item {first + int(rng.integers(_WINDOW))}"
            late = int(rng.normal(0, SPAN_MS / 40))
            at = begin + min(max(number * SPAN_MS // events + late, 0), SPAN_MS - 1)
            event: dict[str, object] = {"item_id": item, "occurred_at": at}
            if what in {"create", "update"}:
                event |= {"type": f"item.{what}d", "title": f"word{rng.integers(20)} word{rng.integers(500)}"}
                yield "items", item, at, json.dumps(event).encode()
            elif what == "alike":
                event |= {"type": "item.created", "title": "one of many", "item_id": f"alike {rng.integers(300)}"}
                yield "items", str(event["item_id"]), at, json.dumps(event).encode()
            elif what == "delete":
                old = f"item {max(0, first - _WINDOW // 2 + int(rng.integers(_WINDOW)))}"
                yield "items", old, at, json.dumps(event | {"type": "item.deleted", "item_id": old}).encode()
            elif what == "tombstone":
                yield "items", item, at, None
            elif what == "bad":
                yield str(rng.choice(["items", "engagements"])), item, at, b"no event" * int(rng.integers(1, 5))
            else:
                item = f"never {rng.integers(50)}" if rng.random() < 0.05 else item
                event |= {"type": "engagement", "user_id": "u", "kind": str(rng.choice(["click", "like", "view"]))}
                event |= {"item_id": item, "event_id": f"e{rng.integers(10 * events)}"}
                event |= {"value": float(rng.normal())} if rng.random() < 0.5 else {}
                yield "engagements", item, at, json.dumps(event).encode()
