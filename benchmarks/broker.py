"""A real broker to measure through, where one can be had, and topics on it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.config import Config
from streamer.produce import produce_event_log
from tests.kafka.broker import Broker, create_topics, given_or_own
from tests.kafka.jars import NoBrokerError


@contextlib.contextmanager
def broker(*, wanted: bool) -> Iterator[tuple[str | None, str]]:
    """(bootstrap address, "") or (None, why there is none); our own broker is stopped at the end."""
    if not wanted:
        yield None, "left out by --no-broker"
        return
    try:
        found = given_or_own()
    except NoBrokerError as error:
        yield None, str(error)
        return
    try:
        yield found.bootstrap, ""
    finally:
        if isinstance(found, Broker):
            found.close()


def fresh_topics(bootstrap: str, partitions: int) -> dict[str, Any]:
    """Create topics that nobody else uses; returns the ``kafka`` section that names them."""
    run = uuid.uuid4().hex[:8]
    names = {
        "items_topic": f"benchmark-items-{run}",
        "engagements_topic": f"benchmark-engagements-{run}",
        "dead_letters_topic": f"benchmark-deadletters-{run}",
    }
    create_topics(bootstrap, {name: 1 if "dead" in name else partitions for name in names.values()}, retention_ms="-1")
    return {"bootstrap_servers": bootstrap, "group_id": f"benchmark-{run}", **names}


def produce(log: Path, kafka: dict[str, Any]) -> float:
    """Put an event log into the topics; returns records a second."""
    counts = produce_event_log(log, Config.model_validate({"kafka": kafka}))
    return (counts.items + counts.engagements) / max(counts.seconds, 1e-9)
