"""Engagements that came before their item, bounded by age and number."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from indexer.keys import pending_key, split_pending_key
from schemas.config import PendingConfig
from schemas.dead_letters import Reason
from schemas.errors import StoreCorruptError
from schemas.events import ENGAGEMENT

_SLACK: Final = 1_024


class Waiting(NamedTuple):
    """One engagement that waits; ``value`` is NaN where there is none."""

    item_id: str
    source: str
    offset: int
    kind: str
    occurred_at: int
    value: float
    record: bytes

    @property
    def age_key(self) -> tuple[int, str, int, str]:
        """Sorts the oldest first, and finds the row again."""
        return self.occurred_at, self.source, self.offset, self.item_id

    @property
    def key(self) -> bytes:
        """In the store's ``pending`` family."""
        return pending_key(self.item_id, self.source, self.offset)


class Expired(NamedTuple):
    """One engagement that waited in vain."""

    waiting: Waiting
    reason: Reason


class Settled(NamedTuple):
    """What a batch does to those that wait.

    Attributes:
        released: (place in the batch, row): applied when their item comes, in this order.
        held: new ones that wait on.
        expired: set aside, old and new ones.
    """

    released: list[tuple[int, Waiting]]
    held: list[Waiting]
    expired: list[Expired]


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

    def __contains__(self, row: Waiting) -> bool:
        return self.get(row.item_id, row.source, row.offset) is not None

    def add(self, row: Waiting) -> None:
        """Let one more wait."""
        waiting = self._by_item.setdefault(row.item_id, {})
        if (row.source, row.offset) not in waiting:
            waiting[row.source, row.offset] = row
            heapq.heappush(self._by_age, row.age_key)
            self._count += 1

    def waits_for(self, item_id: str) -> bool:
        """Whether anything waits for an item."""
        return item_id in self._by_item

    def get(self, item_id: str, source: str, offset: int) -> Waiting | None:
        """One row by its coordinates."""
        return self._by_item.get(item_id, {}).get((source, offset))

    def of_item(self, item_id: str) -> list[Waiting]:
        """What waits for an item, in the order it came."""
        return sorted(self._by_item.get(item_id, {}).values(), key=lambda row: (row.source, row.offset))

    def rows(self) -> list[Waiting]:
        """Everything, in no particular order."""
        return [row for waiting in self._by_item.values() for row in waiting.values()]

    def remove(self, rows: Iterable[Waiting]) -> None:
        """Forget rows that were applied or set aside."""
        for row in rows:
            waiting = self._by_item.get(row.item_id, {})
            if waiting.pop((row.source, row.offset), None) is not None:
                self._count -= 1
                if not waiting:
                    del self._by_item[row.item_id]
        if len(self._by_age) > 2 * self._count + _SLACK:
            # Rows are removed from the middle of the heap; without this, one old row at its top would keep the keys
            # of all that came and went below it.
            self._by_age = [row.age_key for row in self.rows()]
            heapq.heapify(self._by_age)

    def oldest_ms(self) -> int | None:
        """When the oldest happened, epoch milliseconds; None when nothing waits."""
        while self._by_age:
            occurred_at, source, offset, item_id = self._by_age[0]
            if self.get(item_id, source, offset) is not None:
                return occurred_at
            heapq.heappop(self._by_age)
        return None

    def ages(self) -> list[tuple[int, str, int, str]]:
        """A heap of all rows' ``age_key``, and of some that are gone; the caller's own."""
        return self._by_age.copy()


def settle(
    pending: Pending,
    arrivals: Sequence[tuple[int, Waiting]],
    created: Mapping[str, int],
    stream_times: npt.NDArray[np.int64],
    bounds: PendingConfig,
) -> Settled:
    """What a batch does to those that wait, decided as if its events had come one by one; nothing is changed here.

    At each event stream time advances and who waits too long is set aside; an item that comes releases what waits for
    it; an arrival above ``max_count`` sets the oldest aside. So how the stream is cut into batches makes no difference.

    Args:
        pending: who waits before the batch.
        arrivals: (place in the batch, row) of engagements whose item is not there when they come.
        created: item id -> place of the event that makes the item known.
        stream_times: (1 + places,) latest event time up to each place, the time before the batch in front.
        bounds: of age and count.
    """
    if not len(pending) and not arrivals:
        return Settled([], [], [])
    walk = _Walk(pending, arrivals, int(stream_times[-1]), bounds)
    moments: list[tuple[int, Waiting | str]] = [*arrivals]
    if created:
        expected = {row.item_id for _, row in arrivals}
        moments += [
            (at, item_id) for item_id, at in created.items() if item_id in expected or pending.waits_for(item_id)
        ]
        moments.sort(key=lambda moment: moment[0])
    walk.shrink(int(stream_times[0]))
    for at, who in moments:
        walk.shrink(int(stream_times[at + 1]))
        if isinstance(who, str):
            walk.release(at, who)
        else:
            walk.arrive(who)
            walk.shrink(int(stream_times[at + 1]))
    walk.shrink(int(stream_times[-1]))
    return Settled(walk.released, walk.new.rows(), walk.expired)


class _Walk:
    """The state of :func:`settle` between two events."""

    def __init__(
        self, pending: Pending, arrivals: Sequence[tuple[int, Waiting]], end_ms: int, bounds: PendingConfig
    ) -> None:
        self.released: list[tuple[int, Waiting]] = []
        self.expired: list[Expired] = []
        self.new = Pending()
        self._pending = pending
        self._gone: set[tuple[str, int]] = set()
        self._count = len(pending)
        self._max_count = bounds.max_count
        self._max_age_ms = bounds.max_age_s * 1_000
        oldest = min((row.occurred_at for _, row in arrivals), default=end_ms)
        before = pending.oldest_ms()
        oldest = oldest if before is None else min(oldest, before)
        # Mostly nobody is too old or too many; then the heap of all ages need not be copied.
        self._bounded = oldest < end_ms - self._max_age_ms or len(pending) + len(arrivals) > self._max_count
        self._ages = pending.ages() if self._bounded else []

    def arrive(self, row: Waiting) -> None:
        self.new.add(row)
        self._count += 1
        if self._bounded:
            heapq.heappush(self._ages, row.age_key)

    def release(self, at: int, item_id: str) -> None:
        old = [row for row in self._pending.of_item(item_id) if (row.source, row.offset) not in self._gone]
        rows = sorted(old + self.new.of_item(item_id), key=lambda row: (row.source, row.offset))
        self.released += [(at, row) for row in rows]
        self._forget(rows)

    def shrink(self, now_ms: int) -> None:
        """Set aside who is too old or too many at this stream time."""
        while self._bounded and self._ages:
            occurred_at, source, offset, item_id = self._ages[0]
            row = self.new.get(item_id, source, offset)
            if row is None and (source, offset) not in self._gone:
                row = self._pending.get(item_id, source, offset)
            too_old = occurred_at < now_ms - self._max_age_ms
            if row is not None and not too_old and self._count <= self._max_count:
                break
            heapq.heappop(self._ages)
            if row is not None:
                reason = Reason.ITEM_NEVER_CAME if too_old else Reason.PENDING_OVERFLOW
                self.expired.append(Expired(row, reason))
                self._forget([row])

    def _forget(self, rows: list[Waiting]) -> None:
        self._count -= len(rows)
        self._gone.update((row.source, row.offset) for row in rows)
        self.new.remove(rows)


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
