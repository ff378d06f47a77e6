"""What the writer takes: one batch of decoded, encoded events as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ItemRows:
    """n item events, those of one partition in offset order.

    Attributes:
        item_ids: (n,).
        occurred_at: (n,) epoch milliseconds.
        sources: (n,) partition names such as ``items-0``.
        offsets: (n,).
        encoded: (n,) row in ``vectors``/``raw``/``content`` of an upsert; -1 is a delete.
        vectors: (m, F, d) float16 facet embeddings.
        raw: (m, F) uint32 raw indices.
        content: (m,) the events' bytes.
        order: (n,) int64, ascending: the place of each among all events of its batch; None: before all engagements.
    """

    item_ids: Sequence[str]
    occurred_at: I64
    sources: Sequence[str]
    offsets: I64
    encoded: I64
    vectors: npt.NDArray[np.float16]
    raw: npt.NDArray[np.uint32]
    content: Sequence[bytes]
    order: I64 | None = None

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, slots=True)
class EngagementRows:
    """n engagements, those of one partition in offset order.

    Attributes:
        item_ids, kinds, sources: (n,).
        occurred_at: (n,) epoch milliseconds.
        values: (n,) float64, NaN where there is none.
        offsets: (n,).
        records: (n,) the events' bytes, kept while an engagement waits for its item.
        order: (n,) int64, ascending: the place of each among all events of its batch; None: after all items.
    """

    item_ids: Sequence[str]
    kinds: Sequence[str]
    occurred_at: I64
    values: npt.NDArray[np.float64]
    sources: Sequence[str]
    offsets: I64
    records: Sequence[bytes]
    order: I64 | None = None

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Everything one atomic write applies.

    Attributes:
        positions: partition name -> next offset once this batch is applied.
        dead_letters: records of this batch that were set aside.
    """

    items: ItemRows
    engagements: EngagementRows
    positions: Mapping[str, int] = field(default_factory=dict)
    dead_letters: int = 0

    def item_order(self) -> I64:
        """(n,) place of each item event in the order in which the batch was read."""
        return np.arange(len(self.items)) if self.items.order is None else self.items.order

    def engagement_order(self) -> I64:
        """(m,) place of each engagement in the order in which the batch was read."""
        rows = self.engagements
        return len(self.items) + np.arange(len(rows)) if rows.order is None else rows.order

    def stream_times(self, before_ms: int) -> I64:
        """(1 + n + m,) latest event time up to each place in that order, ``before_ms`` in front."""
        times = np.full(1 + len(self.items) + len(self.engagements), before_ms, np.int64)
        times[1 + self.item_order()] = self.items.occurred_at
        times[1 + self.engagement_order()] = self.engagements.occurred_at
        return np.maximum.accumulate(times)


@dataclass(frozen=True, slots=True)
class Applied:
    """What one batch did."""

    items_upserted: int
    items_deleted: int
    items_stale: int
    engagements_applied: int
    engagements_pending: int
    engagements_expired: int


def empty_items(facets: int, dim: int) -> ItemRows:
    """No item events."""
    none = np.empty(0, np.int64)
    return ItemRows(
        [], none, [], none, none, np.empty((0, facets, dim), np.float16), np.empty((0, facets), np.uint32), []
    )


def empty_engagements() -> EngagementRows:
    """No engagements."""
    none = np.empty(0, np.int64)
    return EngagementRows([], [], none, np.empty(0), [], none, [])
