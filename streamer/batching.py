"""From decoded records to the batches the writer applies: encode items, turn engagements into columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from indexer.batch import EngagementRows, EventBatch, ItemRows, empty_engagements, empty_items
from schemas.dead_letters import DeadLetter
from schemas.events import Engagement, ItemContent, ItemDeleted
from streamer.align import Aligned
from streamer.decode import Decoded
from streamer.sources.base import Partition, Stream

I64 = npt.NDArray[np.int64]

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without


@dataclass(frozen=True, slots=True)
class Prepared:
    """One batch ready for the writer, with the dead letters that must be safe before it is applied.

    Attributes:
        taken_at: monotonic seconds at which its oldest record was taken from the source.
    """

    batch: EventBatch
    letters: list[DeadLetter]
    records: int
    taken_at: float


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive records of one partition in a batch.

    Attributes:
        order: (n,) ascending: place of each event among all of the batch.
    """

    decoded: Decoded
    order: I64


def cut(released: Iterable[Aligned], size: int) -> Iterator[list[Part]]:
    """Cut released records into batches of ``size`` events, in the order of their clocks.

    Letters go with the events they lie between.

    Args:
        released: as the aligner gives them: each partition's consecutive.
        size: most events of a batch.
    """
    rest: list[Aligned | None] = list(released)
    if not rest:
        return
    clocks = [aligned.clocks for aligned in rest if aligned is not None]
    part_of = np.repeat(np.arange(len(clocks)), [len(each) for each in clocks])
    in_order = part_of[np.lexsort((part_of, np.concatenate(clocks)))]
    for at in range(0, max(1, len(in_order)), size):
        yield list(_take(rest, in_order[at : at + size]))


def _take(rest: list[Aligned | None], in_order: I64) -> Iterator[Part]:
    """The next events of each part; ``in_order`` is (n,), the part of each event of the batch."""
    counts = np.bincount(in_order, minlength=len(rest)).tolist()
    unfinished: set[Partition] = set()
    for number, aligned in enumerate(rest):
        if aligned is None or aligned.decoded.partition in unfinished:
            continue
        count, head = counts[number], aligned
        rest[number] = None
        if count < len(aligned.clocks):
            unfinished.add(aligned.decoded.partition)
            rest[number] = aligned
            if not count:
                continue
            head, rest[number] = aligned.split(count)
        yield Part(head.decoded, np.flatnonzero(in_order == number))


def prepare(parts: list[Part], model: FrozenModel) -> Prepared:
    """Encode the items and lay everything out as columns, in reading order."""
    items = _Columns([part for part in parts if part.decoded.partition.stream is Stream.ITEMS])
    engagements = _Columns([part for part in parts if part.decoded.partition.stream is Stream.ENGAGEMENTS])
    letters = [letter for part in parts for letter in part.decoded.letters]
    manifest = model.manifest
    batch = EventBatch(
        _item_rows(items, model) if items.events else empty_items(manifest.facets, manifest.dim),
        _engagement_rows(engagements) if engagements.events else empty_engagements(),
        {str(part.decoded.partition): part.decoded.next_offset for part in parts},
        len(letters),
    )
    records = len(items.events) + len(engagements.events) + len(letters)
    return Prepared(batch, letters, records, min(part.decoded.taken_at for part in parts))


class _Columns:
    """The events of several parts in reading order: n events, sources and values, (n,) times, offsets and order."""

    def __init__(self, parts: list[Part]) -> None:
        parts = [part for part in parts if part.decoded.events]
        decoded = [part.decoded for part in parts]
        self.events = [event for each in decoded for event in each.events]
        self.sources = [name for each in decoded for name in [str(each.partition)] * len(each.events)]
        self.values = [value for each in decoded for value in each.values]
        self.times, self.offsets, self.order = np.empty((3, 0), np.int64)
        if parts:
            self.times = np.concatenate([each.times for each in decoded])
            self.offsets = np.concatenate([each.offsets for each in decoded])
            self.order = np.concatenate([part.order for part in parts])
        if len(parts) > 1:
            rows = np.argsort(self.order)
            self.times, self.offsets, self.order = self.times[rows], self.offsets[rows], self.order[rows]
            picked = rows.tolist()
            self.events = [self.events[row] for row in picked]
            self.sources = [self.sources[row] for row in picked]
            self.values = [self.values[row] for row in picked]


def _item_rows(columns: _Columns, model: FrozenModel) -> ItemRows:
    events = columns.events
    upsert = np.array([not isinstance(event, ItemDeleted) for event in events], np.bool_)
    content = [event for event in events if isinstance(event, ItemContent)]
    encoded = model.encode(content)
    return ItemRows(
        [event.item_id for event in events],
        columns.times,
        columns.sources,
        columns.offsets,
        np.where(upsert, np.cumsum(upsert) - 1, -1),
        encoded.vectors,
        encoded.raw,
        [value for value, is_upsert in zip(columns.values, upsert.tolist(), strict=True) if is_upsert],
        columns.order,
    )


def _engagement_rows(columns: _Columns) -> EngagementRows:
    events = [event for event in columns.events if isinstance(event, Engagement)]
    return EngagementRows(
        [event.item_id for event in events],
        [event.kind for event in events],
        columns.times,
        np.array([np.nan if event.value is None else event.value for event in events], np.float64),
        columns.sources,
        columns.offsets,
        columns.values,
        columns.order,
    )
