"""What the writer takes: one batch of decoded, encoded events as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from indexer.labels import Labels

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
        labels: (m,) categories and languages; empty where no item has any.
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
    labels: Sequence[Labels] = ()

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, rows: I64) -> ItemRows:
        """Some of the rows, ascending; ``vectors``, ``raw``, ``content`` and ``labels`` stay whole."""
        picked = rows.tolist()
        return replace(
            self,
            item_ids=[self.item_ids[row] for row in picked],
            occurred_at=self.occurred_at[rows],
            sources=[self.sources[row] for row in picked],
            offsets=self.offsets[rows],
            encoded=self.encoded[rows],
            order=None if self.order is None else self.order[rows],
        )


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
        event_ids: (n,) what tells an engagement from the same one sent again, None where it has none; empty when
            nobody asks.
    """

    item_ids: Sequence[str]
    kinds: Sequence[str]
    occurred_at: I64
    values: npt.NDArray[np.float64]
    sources: Sequence[str]
    offsets: I64
    records: Sequence[bytes]
    order: I64 | None = None
    event_ids: Sequence[str | None] = ()

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, rows: I64) -> EngagementRows:
        """Some of the rows, ascending."""
        picked = rows.tolist()
        return EngagementRows(
            [self.item_ids[row] for row in picked],
            [self.kinds[row] for row in picked],
            self.occurred_at[rows],
            self.values[rows],
            [self.sources[row] for row in picked],
            self.offsets[rows],
            [self.records[row] for row in picked],
            None if self.order is None else self.order[rows],
            [self.event_ids[row] for row in picked] if self.event_ids else (),
        )


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Everything one atomic write applies.

    Attributes:
        positions: partition name -> next offset once this batch is applied.
        letters: partition name -> offsets of the records that were set aside.
        starts: partition name -> offset from which its records were read; where it is missing, nobody checks that
            they follow on those applied before.
        lost: partition name -> records before the next offset that were gone before they were read.
    """

    items: ItemRows
    engagements: EngagementRows
    positions: Mapping[str, int] = field(default_factory=dict)
    letters: Mapping[str, Sequence[int]] = field(default_factory=dict)
    starts: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)

    @property
    def dead_letters(self) -> int:
        """Records of this batch that were set aside."""
        return sum(map(len, self.letters.values()))

    @property
    def records(self) -> int:
        """Records it was made of, those set aside among them."""
        return len(self.items) + len(self.engagements) + self.dead_letters

    def item_order(self) -> I64:
        """(n,) place of each item event in the order in which the batch was read."""
        return np.arange(len(self.items)) if self.items.order is None else self.items.order

    def engagement_order(self) -> I64:
        """(m,) place of each engagement in the order in which the batch was read."""
        rows = self.engagements
        return len(self.items) + np.arange(len(rows)) if rows.order is None else rows.order

    def stream_times(self, before_ms: int) -> I64:
        """(1 + places,) latest event time up to each place in that order, ``before_ms`` in front."""
        item_order, engagement_order = self.item_order(), self.engagement_order()
        places = 1 + max(int(item_order.max(initial=-1)), int(engagement_order.max(initial=-1)))
        times = np.full(1 + places, before_ms, np.int64)
        times[1 + item_order] = self.items.occurred_at
        times[1 + engagement_order] = self.engagements.occurred_at
        return np.maximum.accumulate(times)

    def without_engagements(self, dropped: npt.NDArray[np.bool_]) -> EventBatch:
        """The batch without some engagements, (m,); the others keep their places."""
        rows = replace(self.engagements, order=self.engagement_order())
        return replace(self, engagements=rows.take(np.flatnonzero(~dropped)))

    def beyond(self, applied: Mapping[str, int]) -> tuple[EventBatch, int]:
        """What is left when records below the ``applied`` offsets are taken out, and how many records that were."""
        if all(applied.get(name, 0) <= self.starts.get(name, 0) for name in self.positions):
            return self, 0
        items, engagements = self.items, self.engagements
        fresh_items = _at_or_above(items.sources, items.offsets, applied)
        fresh = _at_or_above(engagements.sources, engagements.offsets, applied)
        letters = {
            name: [offset for offset in offsets if offset >= applied.get(name, 0)]
            for name, offsets in self.letters.items()
        }
        left = replace(
            self,
            items=replace(items, order=self.item_order()).take(np.flatnonzero(fresh_items)),
            engagements=replace(engagements, order=self.engagement_order()).take(np.flatnonzero(fresh)),
            positions={name: max(position, applied.get(name, 0)) for name, position in self.positions.items()},
            letters=letters,
            starts={name: max(start, applied.get(name, 0)) for name, start in self.starts.items()},
            lost={name: count for name, count in self.lost.items() if self.positions[name] > applied.get(name, 0)},
        )
        return left, self.records - left.records


def _at_or_above(sources: Sequence[str], offsets: I64, applied: Mapping[str, int]) -> npt.NDArray[np.bool_]:
    """(n,) which rows have an offset that is not applied yet."""
    names = list(dict.fromkeys(sources))
    number = {name: at for at, name in enumerate(names)}
    of_row = np.fromiter(map(number.__getitem__, sources), np.int64, len(sources))
    limits = np.array([applied.get(name, 0) for name in names], np.int64)
    return np.asarray(offsets >= limits[of_row]) if names else np.zeros(0, np.bool_)


@dataclass(frozen=True, slots=True)
class Applied:
    """What one batch did.

    Attributes:
        engagements_duplicate: engagements whose event_id was seen before; they changed nothing.
        repeated: records that the index had already; they changed nothing.
    """

    items_upserted: int = 0
    items_deleted: int = 0
    items_stale: int = 0
    engagements_applied: int = 0
    engagements_pending: int = 0
    engagements_expired: int = 0
    engagements_duplicate: int = 0
    repeated: int = 0


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
