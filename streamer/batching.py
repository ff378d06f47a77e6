"""From decoded records to the batches the writer applies: encode items, turn engagements into columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from indexer.batch import EngagementRows, EventBatch, ItemRows, empty_engagements, empty_items
from indexer.labels import Labels
from schemas.dead_letters import DeadLetter
from schemas.events import Engagement, ItemContent, ItemDeleted
from streamer.align import Aligned
from streamer.decode import Decoded
from streamer.sources.base import Partition, Stream

I64 = npt.NDArray[np.int64]

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without


BATCH_BYTES: Final = 16 << 20  # with writer.queue_batches this bounds memory, whatever the size of a record


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


def cut(released: Iterable[Aligned], size: int, most_bytes: int = BATCH_BYTES) -> Iterator[list[Part]]:
    """Cut released records into batches of ``size`` records, in the order of their clocks.

    Letters have the clock of the event before them: a flood of them fills batches as events do, and no more.

    Args:
        released: as the aligner gives them: each partition's consecutive.
        size: most records of a batch.
        most_bytes: a batch whose records hold as many ends there.
    """
    rest: list[Aligned | None] = list(released)
    if not rest:
        return
    rows = list(_rows(aligned for aligned in rest if aligned is not None))
    part_of = np.repeat(np.arange(len(rows)), [len(each.clocks) for each in rows])
    by_clock = np.lexsort((part_of, np.concatenate([each.clocks for each in rows])))
    in_order, total = part_of[by_clock], len(by_clock)
    ends: I64 | None = None
    if sum(aligned.decoded.nbytes for aligned in rest if aligned is not None) > most_bytes:
        sizes = [_sizes(aligned.decoded, row) for aligned, row in zip(rest, rows, strict=True) if aligned is not None]
        ends = np.cumsum(np.concatenate(sizes)[by_clock])
    at = 0
    while at < max(1, total):
        end = at + size
        if ends is not None and at < total:
            before = int(ends[at - 1]) if at else 0
            end = min(end, 1 + int(np.searchsorted(ends, before + most_bytes)))
        yield list(_take(rest, rows, in_order[at:end]))
        at = end


@dataclass(slots=True)
class _Rows:
    """Events and letters of one part together, in offset order.

    Attributes:
        clocks: (n,) ascending, also from one part of a partition to the next.
        offsets: (n,) theirs; None where all are events.
        is_event: (n,) bool; None where all are.
        taken: how many are in batches already.
    """

    clocks: I64
    offsets: I64 | None = None
    is_event: npt.NDArray[np.bool_] | None = None
    taken: int = 0


def _rows(parts: Iterable[Aligned]) -> Iterator[_Rows]:
    last: dict[Partition, int] = {}
    for aligned in parts:
        decoded, clocks = aligned.decoded, aligned.clocks
        before = last.get(decoded.partition, -1)
        if decoded.letters:
            letters = np.array([letter.offset for letter in decoded.letters], np.int64)
            of_letters = np.concatenate([[before], clocks])[np.searchsorted(decoded.offsets, letters)]
            offsets = np.concatenate([decoded.offsets, letters])
            by_offset = np.argsort(offsets)
            is_event = (np.arange(len(offsets)) < len(clocks))[by_offset]
            yield _Rows(np.concatenate([clocks, of_letters])[by_offset], offsets[by_offset], is_event)
        else:
            yield _Rows(clocks)
        last[decoded.partition] = int(clocks[-1]) if len(clocks) else before


def _sizes(decoded: Decoded, row: _Rows) -> I64:
    """(n,) bytes of each record's value."""
    events = np.fromiter(map(len, decoded.values), np.int64, len(decoded.values))
    if row.is_event is None:
        return events
    sizes = np.empty(len(row.clocks), np.int64)
    sizes[row.is_event] = events
    sizes[~row.is_event] = [len(letter.value or b"") for letter in decoded.letters]
    return sizes


def _take(rest: list[Aligned | None], rows: list[_Rows], in_order: I64) -> Iterator[Part]:
    """The next records of each part; ``in_order`` is (n,), the part of each record of the batch."""
    counts = np.bincount(in_order, minlength=len(rest)).tolist()
    places, is_event = _places(rows, in_order, counts)
    unfinished: set[Partition] = set()
    for number, aligned in enumerate(rest):
        if aligned is None or aligned.decoded.partition in unfinished:
            continue
        row, count = rows[number], counts[number]
        row.taken += count
        head, rest[number] = aligned, None
        if row.taken < len(row.clocks):
            unfinished.add(aligned.decoded.partition)
            rest[number] = aligned
            if not count:
                continue
            head, rest[number] = _split(aligned, row)
        yield Part(head.decoded, places[is_event & (in_order == number)])


def _places(rows: list[_Rows], in_order: I64, counts: list[int]) -> tuple[I64, npt.NDArray[np.bool_]]:
    """(n,) place of each record among the batch's events, and (n,) whether it is one."""
    is_event = np.ones(len(in_order), np.bool_)
    for number, row in enumerate(rows):
        if row.is_event is not None and counts[number]:
            is_event[in_order == number] = row.is_event[row.taken : row.taken + counts[number]]
    return np.cumsum(is_event) - 1, is_event


def _split(aligned: Aligned, row: _Rows) -> tuple[Aligned, Aligned]:
    """What is taken, and the rest."""
    offsets = aligned.decoded.offsets
    first_left = row.offsets[row.taken] if row.offsets is not None else offsets[row.taken - len(row.clocks)]
    head, tail = aligned.decoded.split_at(int(first_left))
    events = len(head.events)
    return Aligned(head, aligned.clocks[:events]), Aligned(tail, aligned.clocks[events:])


def prepare(parts: list[Part], model: FrozenModel) -> Prepared:
    """Encode the items and lay everything out as columns, in reading order."""
    items = _Columns([part for part in parts if part.decoded.partition.stream is Stream.ITEMS])
    engagements = _Columns([part for part in parts if part.decoded.partition.stream is Stream.ENGAGEMENTS])
    letters = [letter for part in parts for letter in part.decoded.letters]
    manifest = model.manifest
    letters_at: dict[str, list[int]] = {}
    starts: dict[str, int] = {}
    lost: dict[str, int] = {}
    for part in parts:
        name, decoded = str(part.decoded.partition), part.decoded
        if decoded.letters:
            letters_at.setdefault(name, []).extend(letter.offset for letter in decoded.letters)
        if decoded.start is not None:
            starts.setdefault(name, decoded.start)
        if decoded.lost:
            lost[name] = lost.get(name, 0) + decoded.lost
    batch = EventBatch(
        _item_rows(items, model) if items.events else empty_items(manifest.facets, manifest.dim),
        _engagement_rows(engagements) if engagements.events else empty_engagements(),
        {str(part.decoded.partition): part.decoded.next_offset for part in parts},
        letters_at,
        starts,
        lost,
    )
    return Prepared(batch, letters, batch.records, min(part.decoded.taken_at for part in parts))


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
        [Labels.of(event.language, event.categories) for event in content],
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
        [event.event_id for event in events],
    )
