"""What snapshots take from the live view: the one place that knows how the view keeps it.

All functions expect the writer to be kept out by ``view.lock``, and return copies unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from indexer.keys import ItemState
from indexer.labels import Labels, decode, encode
from indexer.order import Order
from indexer.view import LiveView
from schemas.snapshot import ListOrder, SnapshotInfo

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
Columns = dict[str, npt.NDArray[Any]]

ITEM: Final = ("state", "created_at", "labels", "leaf")
COUNTERS: Final = ("epochs", "decayed", "last_at")
"""Columns of ``view.items`` that readers need: those that change with the item, and those that engagements change."""


@dataclass(frozen=True, slots=True)
class At:
    """Where a view stands: as in the manifest."""

    history: str
    offsets: dict[str, int]
    ordinals: int
    labels: int
    items_live: int
    journal_seq: int
    stream_time_ms: int
    order: Order
    landmark: int

    @classmethod
    def of(cls, info: SnapshotInfo) -> At:
        """Where the view stood that a manifest is of."""
        return cls(
            info.history,
            dict(info.offsets),
            info.ordinals,
            info.labels,
            info.items_live,
            info.journal_seq,
            info.stream_time_ms,
            Order(**info.order.model_dump()),
            info.landmark,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """As fields of the manifest."""
        order = ListOrder(window=self.order.window, creation=self.order.creation, slack=self.order.slack)
        return {
            "history": self.history,
            "offsets": self.offsets,
            "ordinals": self.ordinals,
            "labels": self.labels,
            "items_live": self.items_live,
            "journal_seq": self.journal_seq,
            "stream_time_ms": self.stream_time_ms,
            "order": order,
            "landmark": self.landmark,
        }


def at(view: LiveView) -> At:
    """Where the view stands."""
    totals = view.totals
    return At(
        view.totals.history,
        dict(view.positions),
        totals.next_ordinal,
        len(view.labels),
        totals.items_live,
        totals.journal_seq,
        totals.stream_time_ms,
        view.order,
        view.landmark,
    )


def columns(view: LiveView, names: tuple[str, ...], ordinals: I64 | slice) -> Columns:
    """Some columns of some items."""
    return {name: np.array(view.items[name][ordinals]) for name in names}


def vectors(view: LiveView, ordinals: I64) -> F16:
    """(n, F, d) float16 facet embeddings; zeros of items that are not live."""
    live = view.items["state"][ordinals] == ItemState.LIVE
    return view.members.embeddings(view.items["leaf"], live, ordinals)


def labels(view: LiveView, first: int, last: int) -> npt.NDArray[np.uint8]:
    """Sets of labels from one number up to another, a line each. Needs no lock: they never change."""
    return np.frombuffer(b"\n".join(encode(view.labels[number]) for number in range(first, last)), np.uint8)


def read_labels(text: npt.NDArray[np.uint8]) -> list[Labels]:
    """What :func:`labels` wrote.

    Raises:
        StoreCorruptError: if it did not.
    """
    return [decode(line) for line in text.tobytes().split(b"\n")] if len(text) else []


def leaves(view: LiveView, facet: int) -> tuple[I64, F32]:
    """Live leaves (m,) ascending and their centroids (m, d)."""
    found = view.facets[facet].alive()
    return found, centroids(view, facet, found)


def centroids(view: LiveView, facet: int, wanted: I64) -> F32:
    """(m, d) centroids of leaves."""
    return np.array(view.facets[facet].leaves["centroid"][wanted])


def routes(view: LiveView, facet: int) -> tuple[I64, U32, I64]:
    """Raw indices with a route (r,) ascending, their candidate leaves one after the other, (r,) how many each has."""
    pool = view.facets[facet].routes
    raws = np.flatnonzero(pool.lengths)
    targets, counts = pool.gather(raws)
    return raws, targets, counts
