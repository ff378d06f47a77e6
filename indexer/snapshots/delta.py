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
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from indexer.counters import CounterRows
from indexer.snapshots import image
from indexer.snapshots.changes import Changes
from indexer.snapshots.full import FullImage
from indexer.view import LiveView
from schemas.errors import StoreCorruptError

I64 = npt.NDArray[np.int64]

_GROWTH: Final = 2
_MOST: Final = 16_384
"""A segment of more rows is left as it is, so that the writer never waits long for one; a fifth of a million items in
a delta then make a dozen segments."""


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


@dataclass(frozen=True, slots=True)
class Segment:
    """n items and k counters as they were when it was taken.

    Attributes:
        ordinals: (n,) ascending; live, created_at, raw, leaf, vectors and ids (offsets, bytes) belong to them.
        vectors: (n, F, d) float16.
        counted: (k,) ordinals, ascending, whose counters are epochs (k, W), decayed (k, W), last_at (k,).
        leaf_facets, leaf_ids, centroids: (q,), (q,), (q, d) float32: leaves that the full snapshot lacks.
        all_leaves: (1,) whether these are all of them; else those that a row of this segment refers to.
    """

    ordinals: I64
    live: npt.NDArray[np.bool_]
    created_at: I64
    raw: npt.NDArray[np.uint32]
    leaf: npt.NDArray[np.uint32]
    vectors: npt.NDArray[np.float16]
    id_offsets: I64
    id_bytes: npt.NDArray[np.uint8]
    counted: I64
    epochs: npt.NDArray[np.int32]
    decayed: npt.NDArray[np.float64]
    last_at: I64
    leaf_facets: I64
    leaf_ids: I64
    centroids: npt.NDArray[np.float32]
    all_leaves: npt.NDArray[np.bool_]

    @property
    def item_ids(self) -> list[str]:
        """(n,)."""
        joined, offsets = self.id_bytes.tobytes(), self.id_offsets.tolist()
        return [joined[offsets[row] : offsets[row + 1]].decode() for row in range(len(self.ordinals))]

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


def take_segment(view: LiveView, base: Base, changes: Changes, after: int) -> Segment:
    """Everything that changed after a period, as it is now; ``view.lock`` is held. About a microsecond a row."""
    ordinals, counted = changes.since(after)
    columns = image.items(view, ordinals)
    counters = image.counters(view, counted)
    facets, dim = view.meta.facets, view.meta.dim
    vectors = [image.vectors(view, facet, ordinals) for facet in range(facets)]
    encoded = [item_id.encode() for item_id in image.item_ids(view, ordinals)]
    now = image.at(view)
    undisturbed = (now.splits, now.merges) == (base.at.splits, base.at.merges)
    new = [_new_leaves(view, base, facet, columns, undisturbed=undisturbed) for facet in range(facets)]
    return Segment(
        ordinals,
        columns.live,
        columns.created_at,
        columns.raw,
        columns.leaf,
        np.stack(vectors, 1) if vectors else np.empty((0, 0, dim), np.float16),
        np.concatenate([[0], np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))]).astype(np.int64),
        np.frombuffer(b"".join(encoded), np.uint8),
        counted,
        counters.epochs,
        counters.decayed,
        counters.last_at,
        np.repeat(np.arange(facets), [len(ids) for ids in new]),
        np.concatenate(new),
        np.concatenate([image.centroids(view, facet, ids) for facet, ids in enumerate(new)]),
        np.array([undisturbed]),
    )


def _new_leaves(view: LiveView, base: Base, facet: int, rows: image.ItemColumns, *, undisturbed: bool) -> I64:
    """Leaves to send along.

    Before any split or merge these are all that were opened since, so that empty ones are known too. Later, children
    of a split must not pass for leaves beside their parent: only leaves of items whose raw index is new are sent.
    """
    if undisturbed:
        return np.setdiff1d(image.leaves(view, facet)[0], base.leaves[facet], assume_unique=True)
    new_raw = rows.live & ~np.isin(rows.raw[:, facet], base.raws[facet])
    return np.setdiff1d(rows.leaf[new_raw, facet].astype(np.int64), base.leaves[facet])


@dataclass(frozen=True, slots=True)
class Written:
    """One segment of the present delta: it holds what changed after period ``after``, in ``rows`` rows."""

    after: int
    rows: int
    name: str


def start_of_next(segments: list[Written], changes: Changes, published: int) -> tuple[int, int]:
    """Where the next segment begins: how many of the present ones stay, and after which period it starts.

    ``published`` is the last period that the present ones hold.
    """
    keep, after = len(segments), published if segments else 0
    while keep and segments[keep - 1].rows <= min(_MOST, _GROWTH * sum(map(len, changes.since(after)))):
        keep -= 1
        after = segments[keep].after
    return keep, after
