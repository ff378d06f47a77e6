"""Deltas: all that changed since a full snapshot, in a few segments that each hold the changes of some periods.

A delta is cumulative, yet publishing one costs what changed lately: rows that changed after period ``b`` are written as
one new segment that takes the place of all segments after ``b``, where ``b`` is chosen so that each row is written
again about log2(rows) times. A row is the newest state of an item, so a later segment overrides an earlier one.

Rows carry the item's raw indices, and its leaf in the live view as a wish: a reader files the item by the routes of the
*full* snapshot and grants the wish only where it is among the candidates, see :mod:`indexer.snapshots.filing`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from indexer.counters import CounterRows
from indexer.keys import ItemState
from indexer.snapshots import image
from indexer.snapshots.changes import Changes
from indexer.snapshots.full import FullImage
from indexer.view import LiveView
from schemas.errors import StoreCorruptError

I64 = npt.NDArray[np.int64]

_GROWTH: Final = 2
_MOST: Final = 8_192
"""A segment of more rows is left as it is: where so many change between two deltas, none is written, read and filed
twice. A fifth of a million items in a delta then make two dozen segments."""


@dataclass(frozen=True, slots=True)
class Base:
    """What deltas need to know of their full snapshot.

    Attributes:
        at: where the view stood.
        leaves: of each facet: ids (m,) ascending.
        raws: of each facet: raw indices (r,) with a route, ascending.
    """

    at: image.At
    leaves: list[I64]
    raws: list[I64]

    @classmethod
    def of(cls, taken: FullImage) -> Base:
        """That of an image."""
        return cls(taken.at, [ids for ids, _ in taken.leaves], [raws for raws, _, _ in taken.routes])


class First(NamedTuple):
    """The first ordinal, and the first set of labels, that are not known yet."""

    ordinal: int
    label: int


@dataclass(frozen=True, slots=True)
class Segment:
    """n items and k counters as they were when it was taken.

    Attributes:
        ordinals: (n,) ascending; state, created_at, labels, raw, leaf and vectors belong to them.
        vectors: (n, F, d) float16.
        first: (2,) the ordinal that the ids begin with, (m,) id_lengths and id_text of consecutive ordinals, and the
            number that the sets of labels begin with, consecutive too, label_text.
        counted: (k,) ordinals, ascending, whose counters are epochs (k, W), decayed (k, W), last_at (k,).
        leaf_facets, leaf_ids, centroids: (q,), (q,), (q, d) float32: leaves that the full snapshot lacks.
        route_facets, route_raws, route_leaves: (p,) where raw indices lead that the full snapshot has no route of.
        complete: (1,) whether these are all new leaves and routes; else there are no routes, and only leaves that a
            row of this segment refers to.
    """

    ordinals: I64
    state: npt.NDArray[np.uint8]
    created_at: I64
    labels: npt.NDArray[np.uint32]
    raw: npt.NDArray[np.uint32]
    leaf: npt.NDArray[np.uint32]
    vectors: npt.NDArray[np.float16]
    first: I64
    id_lengths: I64
    id_text: npt.NDArray[np.uint8]
    label_text: npt.NDArray[np.uint8]
    counted: I64
    epochs: npt.NDArray[np.int32]
    decayed: npt.NDArray[np.float64]
    last_at: I64
    leaf_facets: I64
    leaf_ids: I64
    centroids: npt.NDArray[np.float32]
    route_facets: I64
    route_raws: I64
    route_leaves: npt.NDArray[np.uint32]
    complete: npt.NDArray[np.bool_]

    @property
    def counters(self) -> CounterRows:
        """(k,)."""
        k = len(self.counted)
        return CounterRows(np.zeros((k, 0), np.uint32), self.epochs, self.decayed, np.zeros(k), self.last_at)

    def encode(self) -> bytes:
        """As an uncompressed npz file."""
        out = io.BytesIO()
        arrays: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        np.savez(out, **arrays)
        return out.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> Segment:
        """What :meth:`encode` wrote.

        Raises:
            StoreCorruptError: if it did not.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                return cls(**{each.name: stored[each.name] for each in fields(cls)})
        except (ValueError, KeyError, OSError) as error:
            raise StoreCorruptError(f"a segment of a delta snapshot does not decode: {error}") from error


def take_segment(view: LiveView, base: Base, changes: Changes, after: int, first: First) -> Segment:
    """Everything that changed after a period, as it is now; ``view.lock`` keeps the writer out.

    ``first``: what is new from there on is sent along. About a microsecond a row.
    """
    ordinals, counted = changes.since(after)
    columns = image.columns(view, (*image.ITEM, "raw"), ordinals)
    counters = image.columns(view, image.COUNTERS, counted)
    facets = range(view.meta.facets)
    now = image.at(view)
    complete = now.journal_seq == base.at.journal_seq
    leaves = [_new_leaves(view, base, facet, columns, complete=complete) for facet in facets]
    raws = [_new_raws(view, base, facet) if complete else np.empty(0, np.int64) for facet in facets]
    ends, text = view.ids.texts(np.arange(first.ordinal, now.ordinals))
    return Segment(
        ordinals,
        **columns,
        vectors=image.vectors(view, ordinals),
        first=np.array(first),
        id_lengths=np.diff(ends, prepend=0),
        id_text=text,
        label_text=image.labels(view, first.label, now.labels),
        counted=counted,
        **counters,
        leaf_facets=np.repeat(facets, [len(ids) for ids in leaves]),
        leaf_ids=np.concatenate(leaves),
        centroids=np.concatenate([image.centroids(view, facet, ids) for facet, ids in enumerate(leaves)]),
        route_facets=np.repeat(facets, [len(each) for each in raws]),
        route_raws=np.concatenate(raws),
        route_leaves=np.concatenate([view.facets[facet].routes.first(each) for facet, each in enumerate(raws)]),
        complete=np.array([complete]),
    )


def _new_leaves(view: LiveView, base: Base, facet: int, rows: image.Columns, *, complete: bool) -> I64:
    """Leaves to send along.

    Before anything is rebalanced these are all that were opened since, so that empty ones are known too. Later,
    children of a split must not pass for leaves beside their parent: only leaves of items whose raw index is new are
    sent.
    """
    if complete:
        return np.setdiff1d(image.leaves(view, facet)[0], base.leaves[facet], assume_unique=True)
    new_raw = (rows["state"] == ItemState.LIVE) & ~np.isin(rows["raw"][:, facet], base.raws[facet])
    return np.setdiff1d(rows["leaf"][new_raw, facet].astype(np.int64), base.leaves[facet])


def _new_raws(view: LiveView, base: Base, facet: int) -> I64:
    """Raw indices that got a route since; until something is rebalanced each leads to one leaf."""
    routed = view.facets[facet].routes.lengths > 0
    routed[base.raws[facet]] = False
    return np.flatnonzero(routed)


@dataclass(frozen=True, slots=True)
class Written:
    """One segment of the present delta.

    Attributes:
        after: it holds what changed after this period.
        first: and what is new from there on.
        rows: how many changes.
        name: of its file.
    """

    after: int
    first: First
    rows: int
    name: str


def start_of_next(segments: list[Written], changes: Changes, published: int, known: First) -> tuple[int, int, First]:
    """Where the next segment begins: how many of the present ones stay, after which period, and with which ids.

    Args:
        segments: the present ones.
        changes: since the full snapshot.
        published: the last period that the present ones hold.
        known: what they and the full snapshot know; new ids begin there unless a segment is replaced.
    """
    keep, after, first = len(segments), published if segments else 0, known
    later = changes.counts()
    while keep and segments[keep - 1].rows <= min(_MOST, _GROWTH * int(later[after])):
        keep -= 1
        after, first = segments[keep].after, segments[keep].first
    return keep, after, first
