"""An event log as one line of time: items that come and change, engagements, and nothing read ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import ValidationError

from schemas.errors import UsageError
from schemas.events import ITEM_EVENT, ItemContent, ItemDeleted
from streamer.evaluation.system import I32, I64
from streamer.sources.base import Stream
from streamer.sources.eventlog import EventLogSource
from streamer.training_data import read_training_log

if TYPE_CHECKING:
    from pathlib import Path

    from model_runtime.training.data import TrainingLog

_POLL: Final = 8_192
_CONTENT_FIELDS: Final = tuple(ItemContent.model_fields)


@dataclass(frozen=True, slots=True)
class Timeline:
    """A log, ordered.

    Attributes:
        log: items and engagements; contents as known when the evaluated span begins, for training.
        item_row: (m,) int32 rows of item events, ordered by time.
        item_at: (m,) int64 epoch milliseconds.
        contents: (m,) what each of those events says of its item.
    """

    log: TrainingLog
    item_row: I32
    item_at: I64
    contents: tuple[ItemContent, ...]


def read_timeline(events: Path, from_ms: int, to_ms: int | None = None) -> Timeline:
    """Read an event log directory.

    Args:
        events: :mod:`streamer.eventlog_format`.
        from_ms: start of the evaluated span, epoch milliseconds: training sees of an item what was known then.
        to_ms: nothing at or after it is read.

    Raises:
        UsageError: there is no event log, or it is damaged.
    """
    log = read_training_log(events, until_ms=to_ms, content_until_ms=from_ms)
    row_of = {item_id: row for row, item_id in enumerate(log.item_ids)}
    found: list[tuple[int, int, ItemContent]] = []
    source = EventLogSource(events)
    engagements = [partition for partition in source.partitions() if partition.stream is not Stream.ITEMS]
    source.pause(engagements)
    try:
        while polled := source.poll(_POLL, 0.0):
            for records in polled:
                for value in records.values:
                    try:
                        event = ITEM_EVENT.validate_json(value or b"")
                    except ValidationError:
                        continue  # counted by read_training_log
                    row = row_of.get(event.item_id)
                    late = to_ms is not None and event.occurred_at >= to_ms
                    if row is not None and not late and not isinstance(event, ItemDeleted):
                        content = {name: getattr(event, name) for name in _CONTENT_FIELDS}
                        found.append((event.occurred_at, row, ItemContent.model_construct(**content)))
    finally:
        source.close()
    found.sort(key=lambda each: each[0])
    return Timeline(
        log,
        np.array([row for _, row, _ in found], np.int32),
        np.array([at for at, _, _ in found], np.int64),
        tuple(content for _, _, content in found),
    )


def timeline_of(log: TrainingLog) -> Timeline:
    """Of a log in memory whose items never change."""
    order = np.argsort(log.created_at, kind="stable")
    contents = tuple(log.contents[row] for row in order.tolist())
    return Timeline(log, order.astype(np.int32), log.created_at[order], contents)


def split_time(log: TrainingLog, share: float) -> int:
    """The moment by which ``share`` of the engagements have happened, epoch milliseconds.

    Raises:
        UsageError: there are none.
    """
    if not len(log.time):
        raise UsageError("the log holds no engagements to split by; give another event log, or a later end (--to)")
    return int(np.quantile(log.time, share, method="higher"))
