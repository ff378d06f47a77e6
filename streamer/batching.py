"""From decoded records to the batches the writer applies: encode items, turn engagements into columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from indexer.batch import EngagementRows, EventBatch, ItemRows, empty_engagements, empty_items
from model_runtime.runtime import FrozenModel
from schemas.dead_letters import DeadLetter
from schemas.events import Engagement, ItemContent, ItemDeleted
from streamer.decode import Decoded
from streamer.sources.base import Stream


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


def cut(released: Iterable[Decoded], size: int) -> Iterator[list[Decoded]]:
    """Group released records into batches of about ``size`` records, order kept."""
    group: list[Decoded] = []
    room = size
    for decoded in released:
        rest = decoded
        while len(rest.events) > room > 0:
            head, rest = rest.split(room)
            yield [*group, head]
            group, room = [], size
        group.append(rest)
        room -= len(rest.events) + len(rest.letters)
        if room <= 0:
            yield group
            group, room = [], size
    if group:
        yield group


def prepare(parts: list[Decoded], model: FrozenModel) -> Prepared:
    """Encode the items and lay everything out as columns."""
    items = [part for part in parts if part.partition.stream is Stream.ITEMS and part.events]
    engagements = [part for part in parts if part.partition.stream is Stream.ENGAGEMENTS and part.events]
    letters = [letter for part in parts for letter in part.letters]
    manifest = model.manifest
    batch = EventBatch(
        _item_rows(items, model) if items else empty_items(manifest.facets, manifest.dim),
        _engagement_rows(engagements) if engagements else empty_engagements(),
        {str(part.partition): part.next_offset for part in parts},
        len(letters),
    )
    records = sum(len(part.events) + len(part.letters) for part in parts)
    return Prepared(batch, letters, records, min(part.taken_at for part in parts))


def _sources(parts: list[Decoded]) -> list[str]:
    return [name for part in parts for name in [str(part.partition)] * len(part.events)]


def _item_rows(parts: list[Decoded], model: FrozenModel) -> ItemRows:
    events = [event for part in parts for event in part.events]
    values = [value for part in parts for value in part.values]
    upsert = np.array([not isinstance(event, ItemDeleted) for event in events], np.bool_)
    content = [event for event in events if isinstance(event, ItemContent)]
    encoded = model.encode(content)
    return ItemRows(
        [event.item_id for event in events],
        np.concatenate([part.times for part in parts]),
        _sources(parts),
        np.concatenate([part.offsets for part in parts]),
        np.where(upsert, np.cumsum(upsert) - 1, -1),
        encoded.vectors,
        encoded.raw,
        [value for value, is_upsert in zip(values, upsert.tolist(), strict=True) if is_upsert],
    )


def _engagement_rows(parts: list[Decoded]) -> EngagementRows:
    events = [event for part in parts for event in part.events if isinstance(event, Engagement)]
    return EngagementRows(
        [event.item_id for event in events],
        [event.kind for event in events],
        np.concatenate([part.times for part in parts]),
        np.array([np.nan if event.value is None else event.value for event in events], np.float64),
        _sources(parts),
        np.concatenate([part.offsets for part in parts]),
        [value for part in parts for value in part.values],
    )
