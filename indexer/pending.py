"""Engagements that came before their item, bounded by age and number."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import ValidationError

from indexer.keys import split_pending_key
from schemas.dead_letters import Reason
from schemas.errors import StoreCorruptError
from schemas.events import ENGAGEMENT


class Waiting(NamedTuple):
    """One engagement that waits; ``value`` is NaN where there is none."""

    item_id: str
    source: str
    offset: int
    kind: str
    occurred_at: int
    value: float
    record: bytes


class Expired(NamedTuple):
    """One engagement that waited in vain."""

    waiting: Waiting
    reason: Reason


class Pending:
    """What waits, by item, in source order. The store holds the same; this is its image in memory."""

    def __init__(self, rows: Iterable[Waiting] = ()) -> None:
        self._by_item: dict[str, dict[tuple[str, int], Waiting]] = {}
        self._by_age: list[tuple[int, str, int, str]] = []
        self._count = 0
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        return self._count

    def add(self, row: Waiting) -> None:
        """Let one more wait."""
        waiting = self._by_item.setdefault(row.item_id, {})
        if (row.source, row.offset) not in waiting:
            waiting[row.source, row.offset] = row
            heapq.heappush(self._by_age, (row.occurred_at, row.source, row.offset, row.item_id))
            self._count += 1

    def of_item(self, item_id: str) -> list[Waiting]:
        """What waits for an item, in the order it came."""
        return sorted(self._by_item.get(item_id, {}).values(), key=lambda row: (row.source, row.offset))

    def remove(self, rows: Iterable[Waiting]) -> None:
        """Forget rows that were applied or set aside."""
        for row in rows:
            waiting = self._by_item.get(row.item_id, {})
            if waiting.pop((row.source, row.offset), None) is not None:
                self._count -= 1
                if not waiting:
                    del self._by_item[row.item_id]

    def expired(self, before_ms: int, max_count: int) -> list[Expired]:
        """Which rows to set aside: older than ``before_ms``, or the oldest beyond ``max_count``.

        Nothing is removed here: the caller first makes the dead letters durable.
        """
        found: list[Expired] = []
        kept: list[tuple[int, str, int, str]] = []
        excess = self._count - max_count
        while self._by_age:
            occurred_at, source, offset, item_id = self._by_age[0]
            row = self._by_item.get(item_id, {}).get((source, offset))
            too_old = occurred_at < before_ms
            if row is not None and not too_old and len(found) >= excess:
                break
            entry = heapq.heappop(self._by_age)
            if row is not None:
                kept.append(entry)
                found.append(Expired(row, Reason.ITEM_NEVER_CAME if too_old else Reason.PENDING_OVERFLOW))
        for entry in kept:  # still waiting until the caller says otherwise
            heapq.heappush(self._by_age, entry)
        return found


def load_pending(rows: Iterable[tuple[bytes, bytes]]) -> Pending:
    """Rebuild from the store's ``pending`` family.

    Raises:
        StoreCorruptError: if a stored engagement does not decode.
    """
    pending = Pending()
    for key, value in rows:
        item_id, source, offset = split_pending_key(key)
        try:
            event = ENGAGEMENT.validate_json(value)
        except ValidationError as error:
            raise StoreCorruptError(f"pending engagement {source}@{offset} does not decode: {error}") from error
        number = math.nan if event.value is None else event.value
        pending.add(Waiting(item_id, source, offset, event.kind, event.occurred_at, number, value))
    return pending
