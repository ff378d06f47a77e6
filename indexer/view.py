"""The live view: the store's content as arrays, rebuilt at start and kept current by the writer.

The writer changes it under ``lock`` after each atomic write; readers copy what they need under the same lock, so they
never see half of a batch, a split or a merge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.counters import CounterRows
from indexer.hot import HotList
from indexer.ids import Ids
from indexer.keys import ItemState, LeafState
from indexer.labels import LabelTable
from indexer.members import FacetMembers, MemberPool
from indexer.order import Impact, Order
from indexer.pages import zeros
from indexer.ragged import RaggedPool
from indexer.reads import Reads
from indexer.shared_lock import SharedLock
from schemas.store import StoreMeta, Totals

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

Watcher = Callable[[I64, I64], None]


class Rows:
    """Named arrays that share their first axis and grow together by doubling.

    Attributes:
        changes: how often there were other arrays, or more rows.
    """

    def __init__(self, **shapes: tuple[Any, tuple[int, ...]]) -> None:
        self.changes = 0
        self._arrays = {name: np.zeros((0, *shape), dtype) for name, (dtype, shape) in shapes.items()}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """The array with its spare room cut off; writing to it writes through."""
        return self._arrays[name][: self._size]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(array.nbytes for array in self._arrays.values())

    def adopt(self, size: int, **arrays: npt.NDArray[Any]) -> None:
        """Use arrays of at least ``size`` rows, as many in each; those that are not given are zero."""
        room = len(next(iter(arrays.values())))
        self._arrays = {
            name: arrays[name] if name in arrays else np.zeros((room, *array.shape[1:]), array.dtype)
            for name, array in self._arrays.items()
        }
        self._size = size
        self.changes += 1

    def resize(self, size: int) -> None:
        """Make room for ``size`` rows; new ones are zero."""
        have = len(next(iter(self._arrays.values())))
        if size > have:
            room = max(size, have + have // 2, 1_024)
            for name, array in self._arrays.items():
                grown = zeros((room, *array.shape[1:]), array.dtype)
                grown[:have] = array
                self._arrays[name] = grown
        if size > self._size:
            self._size = size
            self.changes += 1

    def widen(self, name: str, width: int) -> None:
        """Grow the second axis of one array."""
        array = self._arrays[name]
        if width > array.shape[1]:
            grown = zeros((len(array), width, *array.shape[2:]), array.dtype)
            grown[:, : array.shape[1]] = array
            self._arrays[name] = grown
            self.changes += 1


class FacetView:
    """Leaves, posting lists and routes of one facet.

    Attributes:
        codewords: (L, M, d) float32 of this facet.
        leaves: arrays by leaf id: state, version, marked_size, alive, centroid (d,); ``centred`` is how many members it
            held when its centroid was last their mean, as far as is known.
        members: leaf -> ordinals and their embeddings, in order of impact; see :mod:`indexer.order`.
        routes: raw index -> candidate leaves.
        raws: leaf -> raw indices routed to it.
        changes: how often leaves came, went or moved their centroids.
    """

    def __init__(self, codewords: F32, members: FacetMembers) -> None:
        layers, width, dim = codewords.shape
        self.codewords = codewords
        self.raw_indices = width**layers
        self.leaves = Rows(
            state=(np.uint8, ()),
            version=(np.uint32, ()),
            marked_size=(np.uint32, ()),
            centred=(np.uint32, ()),
            alive=(np.bool_, ()),
            centroid=(np.float32, (dim,)),
        )
        self.members = members
        self.routes = RaggedPool(self.raw_indices)
        self.raws = RaggedPool()
        self.changes = 0

    def sizes(self) -> I64:
        """(leaf ids,) members of each leaf; a live view."""
        return self.members.lengths[: len(self.leaves)]

    def alive(self) -> I64:
        """Ids of the live leaves, ascending."""
        return np.flatnonzero(self.leaves["alive"])

    def parents(self, raws: I64) -> I64:
        """(n,) first-layer codeword of each raw index."""
        return np.asarray(raws // (self.raw_indices // self.codewords.shape[1]), np.int64)

    def ensure_leaves(self, count: int) -> None:
        """Make leaf ids below ``count`` exist."""
        self.leaves.resize(count)
        self.members.pool.ensure_rows(count * self.members.pool.facets)
        self.raws.ensure_rows(count)

    def reconstruct(self, raws: npt.NDArray[np.integer]) -> F32:
        """(n, d) sum of the codewords that n raw indices name (digest section 2.2)."""
        layers, width, dim = self.codewords.shape
        out = np.zeros((len(raws), dim), np.float32)
        rest = raws.astype(np.int64)
        for layer in range(layers - 1, -1, -1):
            out += self.codewords[layer, rest % width]
            rest = rest // width
        return out

    def add_leaf(self, leaf: int, centroid: F32) -> None:
        """Bring a new leaf to life."""
        self.ensure_leaves(leaf + 1)
        self.leaves["alive"][leaf] = True
        self.set_centroids(np.array([leaf]), centroid)

    def set_centroids(self, leaves: npt.NDArray[np.integer], centroids: F32) -> None:
        """New centroids (n, d) of leaves (n,)."""
        self.leaves["centroid"][leaves] = centroids
        self.changes += 1

    def retire_leaf(self, leaf: int) -> None:
        """Let a leaf go; its id is never used again."""
        self.changes += 1
        self.leaves["alive"][leaf] = False
        self.leaves["state"][leaf] = LeafState.RETIRED
        self.members.pool.take(leaf * self.members.pool.facets + self.members.facet)
        self.raws.replace(leaf, np.empty(0, np.uint32))


class LiveView:
    """Items, counters and facets of one store.

    Attributes:
        lock: held by the writer while it changes anything here, shared by readers while they read.
        items: arrays by ordinal: state, source, labels, created_at, occurred_at, offset, raw (F,), leaf (F,),
            counts (K,), epochs (W,), decayed (W,), value_sum, last_at.
        members: embeddings and posting lists of all facets.
        labels: what the numbers in ``items["labels"]`` mean.
        ids: item ids by ordinal, and ordinals by item id.
        reads: how often leaves are read.
        hot: the list of the hottest items.
        totals: as of the last applied batch.
        order, impact, landmark: how posting lists are ordered, see :mod:`indexer.order`.
        changed: items that came or were engaged since all heats were computed, each as often.
        latest_engagement: the greatest ``last_at``.
        positions: partition name -> next offset.
        watchers: told, under ``lock``, before a batch changes anything here: ordinals of which the item is about to
            change, and those of which the counters are. Some may be new.
    """

    def __init__(self, meta: StoreMeta, totals: Totals, codewords: F32, order: Order) -> None:
        windows = len(meta.half_lives_s)
        self.meta = meta
        self.totals = totals
        self.lock = SharedLock()
        self.items = Rows(
            state=(np.uint8, ()),
            source=(np.uint16, ()),
            labels=(np.uint32, ()),
            created_at=(np.int64, ()),
            occurred_at=(np.int64, ()),
            offset=(np.int64, ()),
            raw=(np.uint32, (meta.facets,)),
            leaf=(np.uint32, (meta.facets,)),
            counts=(np.uint32, (0,)),
            epochs=(np.int32, (windows,)),
            decayed=(np.float64, (windows,)),
            value_sum=(np.float64, ()),
            last_at=(np.int64, ()),
        )
        self.labels = LabelTable()
        self.ids = Ids()
        self.members = MemberPool(meta.facets, meta.dim)
        self.reads = Reads(meta.facets)
        self.hot = HotList(self)
        self.facets = [FacetView(codewords[facet], FacetMembers(self.members, facet)) for facet in range(meta.facets)]
        self.order = order
        self.impact = Impact(order, meta)
        self.landmark = self.impact.as_of(totals)
        self.changed = 0
        self.latest_engagement = 0
        self.positions: dict[str, int] = {}
        self.watchers: list[Watcher] = []

    def counters(self, ordinals: I64) -> CounterRows:
        """Counters of n ordinals, copied."""
        items = self.items
        return CounterRows(
            items["counts"][ordinals],
            items["epochs"][ordinals],
            items["decayed"][ordinals],
            items["value_sum"][ordinals],
            items["last_at"][ordinals],
        )

    def set_counters(self, ordinals: I64, rows: CounterRows) -> None:
        """Write counters of n distinct ordinals."""
        items = self.items
        items.widen("counts", rows.counts.shape[1])
        items["counts"][ordinals, : rows.counts.shape[1]] = rows.counts
        items["epochs"][ordinals] = rows.epochs
        items["decayed"][ordinals] = rows.decayed
        items["value_sum"][ordinals] = rows.value_sum
        items["last_at"][ordinals] = rows.last_at
        self.latest_engagement = max(self.latest_engagement, int(rows.last_at.max(initial=0)))

    def heats(self, ordinals: I64) -> F32:
        """(n,) heats of items as of the landmark, see :class:`indexer.order.Impact`."""
        return self.impact.heats(self.counters(ordinals), self.items["created_at"][ordinals], self.landmark)

    def vectors(self, ordinals: I64, facet: int) -> npt.NDArray[np.float16]:
        """(n, d) float16 embeddings of live items in one facet."""
        rows = self.facets[facet].members.rows(self.items["leaf"][ordinals, facet])
        return self.members.vectors(rows, ordinals)

    def engage(self, ordinals: I64, rows: CounterRows) -> None:
        """New counters of n distinct ordinals, which may change their place in posting lists."""
        self.set_counters(ordinals, rows)
        self.changed += len(ordinals)
        self.hot.touch(ordinals)
        live = self.items["state"][ordinals] == ItemState.LIVE
        self.members.engage(self.items["leaf"], ordinals[live], self.heats(ordinals[live]))

    def next_landmark(self, stream_time_ms: int) -> int:
        """The landmark once stream time is there, see :class:`indexer.order.Impact`."""
        return self.impact.next(self.landmark, stream_time_ms, self.changed, len(self.items))

    def aged(self, landmark: int) -> F32 | None:
        """(items,) all heats as of a landmark, if it is another one; the thread that changes the view may ask."""
        if landmark == self.landmark:
            return None
        every = np.arange(len(self.items))
        return self.impact.heats(self.counters(every), self.items["created_at"][every], landmark)

    def age(self, landmark: int, heats: F32 | None) -> None:
        """Go on from a landmark, with what :meth:`aged` gave for it."""
        if heats is not None:
            self.landmark, self.changed = landmark, 0
            self.members.reheat(heats)
            self.members.touched[:] = self.members.length + 1
            self.hot.restart(heats)

    def settle(self) -> None:
        """Sort the posting lists in which enough changed."""
        members = self.members
        self.sort(np.flatnonzero(members.touched > self.order.slack * members.length))

    def sort(self, rows: I64, *, bare: bool = False) -> None:
        """Sort posting lists by impact; ``rows`` are rows of ``members``, ``bare`` those without embeddings yet."""
        impact = self.impact
        self.members.sort(rows, self.items["created_at"], impact.creation, impact.half_life_s, self.landmark, bare=bare)

    def ordinals_of(self, item_ids: Sequence[str]) -> I64:
        """(n,) ordinals, -1 where an id was never seen."""
        return self.ids.ordinals(item_ids)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        facets = sum(f.leaves.nbytes + f.routes.nbytes + f.raws.nbytes for f in self.facets)
        return self.items.nbytes + self.members.nbytes + self.ids.nbytes + facets
