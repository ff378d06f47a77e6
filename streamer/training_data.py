"""Events as arrays, for training and evaluation: of an event log, or of what else hands over records.

Training is not ingestion: a line that is no event is counted and skipped here, not set aside as a dead letter.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import ValidationError

from model_runtime.training.data import NO_SESSION, TrainingLog
from schemas.errors import RecordError
from schemas.events import ENGAGEMENT, ITEM_EVENT, ItemDeleted
from streamer.decode import tombstone
from streamer.sources.base import Records, Stream
from streamer.sources.eventlog import EventLogSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from schemas.events import ItemContent, ItemCreated, ItemUpdated

BAD_RECORD: Final = "bad_record"  # no event, or an event of the other stream
AFTER_UNTIL: Final = "after_until"
UNKNOWN_ITEM: Final = "unknown_item"  # an engagement whose item is not in the log by then
DELETED_ITEM: Final = "deleted_item"  # items whose last word was a delete; their engagements are unknown_item

_POLL: Final = 8_192


def read_training_log(
    path: Path,
    until_ms: int | None = None,
    *,
    content_until_ms: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TrainingLog:
    """Read an event log directory, plain or compressed, one or more partitions.

    Args:
        path: the directory (:mod:`streamer.eventlog_format`).
        until_ms: leave out every event at or after this moment, epoch milliseconds.
        content_until_ms: an item has the content of its latest event before this moment, or, if it was created
            later, of its first event. Give the start of an evaluated span, so that what became known of an item
            within the span does not help to find it. Unset: the latest content.
        progress: told how many records were just read.

    Returns:
        Items by time of creation, engagements by time; ``skipped`` counts what was left out. Deleted items are left
        out with their engagements.

    Raises:
        UsageError: there is no event log at ``path``, or it is damaged.
    """
    reading = Reading(until_ms)
    source = EventLogSource(path)
    try:
        reading.read_on(source, progress)
    finally:
        source.close()
    return reading.log(content_until_ms)


@dataclass(slots=True)
class _Engagements:
    """Columns that grow."""

    user: array[int] = field(default_factory=lambda: array("i"))
    item: array[int] = field(default_factory=lambda: array("i"))
    time: array[int] = field(default_factory=lambda: array("q"))
    kind: array[int] = field(default_factory=lambda: array("i"))
    value: array[float] = field(default_factory=lambda: array("f"))
    session: array[int] = field(default_factory=lambda: array("i"))


class Reading:
    """What was read so far of a log that may grow. Items are numbered as either stream mentions them.

    Args:
        until_ms: leave out every event at or after this moment, epoch milliseconds.

    Attributes:
        until_ms: may be set anew between two calls; what was left out stays so.
        first_ms, last_ms: earliest and latest engagement read; None before there is one.
    """

    def __init__(self, until_ms: int | None = None) -> None:
        self.until_ms = until_ms
        self.first_ms: int | None = None
        self.last_ms: int | None = None
        self._items: dict[str, int] = {}
        self._events: dict[int, list[ItemCreated | ItemUpdated | ItemDeleted]] = {}
        self._users: dict[str, int] = {}
        self._kinds: dict[str, int] = {}
        self._sessions: dict[tuple[int, str], int] = {}
        self._columns = _Engagements()
        self._skipped = dict.fromkeys((BAD_RECORD, AFTER_UNTIL, UNKNOWN_ITEM, DELETED_ITEM), 0)

    def read_on(
        self,
        source: EventLogSource,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> int:
        """Take all records that a source has now, or those before ``stopped`` says so; returns how many.

        Raises:
            UsageError: the log is damaged, or changed otherwise than by growing.
        """
        taken = 0
        while not stopped() and (polled := source.poll(_POLL, 0.0)):
            for records in polled:
                self.take(records)
                taken += len(records)
                if progress is not None:
                    progress(len(records))
        return taken

    def take(self, records: Records) -> None:
        """Take consecutive records of one partition; on the items' topic one without a value deletes its key's item."""
        if records.partition.stream is Stream.ENGAGEMENTS:
            for value in records.values:
                self._engagement(value)
            return
        times = records.timestamps
        for row, value in enumerate(records.values):
            try:
                if value is None and times is not None:
                    event: ItemCreated | ItemUpdated | ItemDeleted = tombstone(records.keys[row], times[row])
                else:
                    event = ITEM_EVENT.validate_json(value or b"")
            except (ValidationError, RecordError):
                self._skipped[BAD_RECORD] += 1
            else:
                self._item(event)

    def _item(self, event: ItemCreated | ItemUpdated | ItemDeleted) -> None:
        if self.until_ms is not None and event.occurred_at >= self.until_ms:
            self._skipped[AFTER_UNTIL] += 1
            return
        self._events.setdefault(self._number(event.item_id), []).append(event)

    def _engagement(self, value: bytes | None) -> None:
        try:
            event = ENGAGEMENT.validate_json(value or b"")
        except ValidationError:
            self._skipped[BAD_RECORD] += 1
            return
        if self.until_ms is not None and event.occurred_at >= self.until_ms:
            self._skipped[AFTER_UNTIL] += 1
            return
        user = self._users.setdefault(event.user_id, len(self._users))
        session = NO_SESSION
        if event.session_id is not None:  # names of sessions need be unique per user only
            session = self._sessions.setdefault((user, event.session_id), len(self._sessions))
        self.first_ms = event.occurred_at if self.first_ms is None else min(self.first_ms, event.occurred_at)
        self.last_ms = event.occurred_at if self.last_ms is None else max(self.last_ms, event.occurred_at)
        columns = self._columns
        columns.user.append(user)
        columns.item.append(self._number(event.item_id))
        columns.time.append(event.occurred_at)
        columns.kind.append(self._kinds.setdefault(event.kind, len(self._kinds)))
        columns.value.append(np.nan if event.value is None else event.value)
        columns.session.append(session)

    def _number(self, item_id: str) -> int:
        return self._items.setdefault(item_id, len(self._items))

    def log(self, content_until_ms: int | None = None) -> TrainingLog:
        """All of it as arrays; ``content_until_ms`` as for :func:`read_training_log`."""
        skipped = dict(self._skipped)
        ids = list(self._items)
        living: list[tuple[int, str, int, ItemContent]] = []
        for number, events in self._events.items():
            # Stable: of two events of one moment the later in the log has the last word.
            since = _since_last_delete(sorted(events, key=lambda event: event.occurred_at))
            if not since:
                skipped[DELETED_ITEM] += 1
                continue
            created_at = since[0].occurred_at
            living.append((created_at, ids[number], number, _content(since, content_until_ms)))
        living.sort(key=lambda item: item[:2])
        row = np.full(len(ids) + 1, -1, np.int32)
        row[[number for _, _, number, _ in living]] = np.arange(len(living), dtype=np.int32)

        columns = self._columns
        time = np.array(columns.time, np.int64)
        item = row[np.array(columns.item, np.int64)]
        kept = np.argsort(time, kind="stable")
        kept = kept[item[kept] >= 0]
        skipped[UNKNOWN_ITEM] += len(time) - len(kept)
        return TrainingLog(
            item_ids=tuple(item_id for _, item_id, _, _ in living),
            contents=tuple(content for _, _, _, content in living),
            created_at=np.array([created_at for created_at, _, _, _ in living], np.int64),
            user=_int32(columns.user)[kept],
            item=item[kept],
            time=time[kept],
            kind=_int32(columns.kind)[kept],
            value=np.array(columns.value, np.float32)[kept],
            session=_int32(columns.session)[kept],
            users=len(self._users),
            kinds=tuple(self._kinds),
            skipped=skipped,
        )


def _int32(column: array[int]) -> npt.NDArray[np.int32]:
    return np.array(column, np.int32)


def _since_last_delete(events: list[ItemCreated | ItemUpdated | ItemDeleted]) -> list[ItemCreated | ItemUpdated]:
    """The events of the item as it lives now, none when it is deleted."""
    living: list[ItemCreated | ItemUpdated] = []
    for event in events:
        if isinstance(event, ItemDeleted):
            living.clear()
        else:
            living.append(event)
    return living


def _content(events: list[ItemCreated | ItemUpdated], content_until_ms: int | None) -> ItemContent:
    """The event itself: it is content that brings its identifier along, as the encoder of an index gets it."""
    known = events
    if content_until_ms is not None:
        known = [event for event in events if event.occurred_at < content_until_ms] or events[:1]
    return known[-1]
