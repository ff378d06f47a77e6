"""Leaves below B_low into the nearest: planned in groups, so that little is moved and each group is one write."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.failpoints import failpoint
from indexer.keys import LeafRecord, LeafState
from indexer.rebalance.centres import sums
from indexer.rebalance.moving import Moves, note, put_leaf, put_moves, put_routes, show_routes
from indexer.rebalance.plans import MergePlan, Outcome, current
from indexer.view import FacetView, LiveView
from indexer.writer import IndexWriter

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]


def plan_merges(
    view: LiveView, number: int, bounds: tuple[int, int], fill: float, budget: int
) -> tuple[list[MergePlan], int]:
    """Join undersized leaves of a facet with the nearest that has room, same first-layer parent preferred.

    Smallest first. When no partner keeps the joint size within bounds the nearest is taken all the same: the next
    round splits the result into two halves that are.

    Returns:
        The plans, and how much of the budget they take: members moved plus one for each leaf.
    """
    began = time.perf_counter()
    with view.lock.shared():
        leaves = _Leaves.of(view.facets[number])
    low, high = bounds
    heap = [(members, at) for at, members in enumerate(leaves.size.tolist()) if members < low]
    if not heap or len(leaves.ids) < 2:
        return [], 0
    heapq.heapify(heap)
    groups = _Groups(leaves, (int(fill * high), high))
    cost = 0
    while heap and cost < budget:
        recorded, small = heapq.heappop(heap)
        if not groups.open_[small] or groups.size[small] != recorded:
            continue
        partner = groups.partner(small)
        if partner is None:
            break
        cost += 1 + min(recorded, int(groups.size[partner]))
        target = groups.join(small, partner)
        if groups.size[target] < low:
            heapq.heappush(heap, (int(groups.size[target]), target))
    plans = []
    for target, gone in groups.gone.items():
        involved = [target, *gone]
        ids = leaves.ids[involved].tolist()
        plans.append(MergePlan(number, ids[0], tuple(ids[1:]), tuple(leaves.version[involved].tolist())))
    each_ms = (time.perf_counter() - began) * 1_000 / max(1, len(plans))
    return [replace(plan, plan_ms=each_ms) for plan in plans], cost


def apply_merge(writer: IndexWriter, plan: MergePlan) -> Outcome:
    """Move the members of all leaves of a group into its target, which gets their common mean as centroid."""
    began = time.perf_counter()
    view, number = writer.view, plan.facet
    facet = view.facets[number]
    involved = (plan.target, *plan.leaves)
    if not all(current(facet, leaf, version) for leaf, version in zip(involved, plan.versions, strict=True)):
        return Outcome("merge", applied=False)
    gone = np.array(plan.leaves, np.int64)
    members, counts = facet.members.gather(gone)
    came_from, into = np.repeat(gone, counts), np.full(len(members), plan.target)
    moves = Moves(view, number, members, came_from, into)
    target = facet.members.row(plan.target)
    joint = len(target) + len(members)
    centroid = facet.leaves["centroid"][plan.target].copy()
    if joint:
        all_sums = sums(view.vectors(target.astype(np.int64), number), np.zeros(len(target), np.int64), 1)
        all_sums += sums(moves.vectors, np.zeros(len(members), np.int64), 1)
        centroid = (all_sums[0] / joint).astype(np.float32)

    totals = view.totals.model_copy(deep=True)
    totals.merges += 1
    write = writer.store.batch()
    record = LeafRecord(LeafState.NORMAL, plan.versions[0] + 1, 0, centroid)
    put_leaf(write, number, plan.target, record)
    write.delete_many("leaves", [keys.FACET_U32.pack(number, leaf) for leaf in plan.leaves])
    raws = np.unique(facet.raws.gather(gone)[0])
    single = facet.routes.lengths[raws] == 1
    alone = raws[single].astype(np.int64)
    packed = [np.uint32(plan.target).astype("<u4").tobytes()] * len(alone)
    write.put_many("routes", [keys.FACET_U32.pack(number, raw) for raw in alone.tolist()], packed)
    routes = {raw: _without(facet.routes.row(raw), gone, plan.target) for raw in raws[~single].tolist()}
    put_routes(write, number, routes)
    put_moves(write, view, number, members, came_from, into)
    note(
        write, totals, plan.plan_ms, began, time.perf_counter(),
        op="merge", facet=number, leaf=plan.target, **{"from": list(plan.leaves)},
        sizes=[len(target), *counts.tolist()], size=joint, moved=len(members), why="size below the lower bound",
    )  # fmt: skip
    write.totals(totals)
    failpoint("merge.before")
    writer.store.write(write)
    failpoint("merge.after")

    with view.lock:
        moves.show()
        for leaf in plan.leaves:
            facet.retire_leaf(leaf)
        had = facet.raws.row(plan.target)
        facet.raws.replace(plan.target, np.union1d(had, raws).astype(np.uint32))
        facet.routes.set_first(alone, plan.target)
        show_routes(facet, routes)
        facet.set_centroids(np.array([plan.target]), centroid)
        for name, value in (("version", record.version), ("state", 0), ("marked_size", 0), ("centred", joint)):
            facet.leaves[name][plan.target] = value
        view.totals = totals
    apply_ms = (time.perf_counter() - began) * 1_000
    return Outcome("merge", applied=True, moved=len(members), plan_ms=plan.plan_ms, apply_ms=apply_ms)


def _without(leaves: U32, gone: I64, target: int) -> U32:
    kept = leaves[~np.isin(leaves, gone)]
    return kept if target in kept else np.append(kept, np.uint32(target))


@dataclass(frozen=True, slots=True)
class _Leaves:
    """The n live leaves of a facet as they are now: ids, sizes, versions, first-layer parents, centroids (n, d)."""

    ids: I64
    size: I64
    version: I64
    parent: I64
    centroid: npt.NDArray[np.float64]

    @classmethod
    def of(cls, facet: FacetView) -> _Leaves:
        ids = facet.alive()
        return cls(
            ids,
            facet.sizes()[ids].astype(np.int64),
            facet.leaves["version"][ids].astype(np.int64),
            facet.parents(facet.raws.first(ids).astype(np.int64)),
            facet.leaves["centroid"][ids].astype(np.float64),
        )


class _Groups:
    """Leaves joined so far while merges are planned; positions are into the array of live leaves."""

    def __init__(self, leaves: _Leaves, caps: tuple[int, int]) -> None:
        self.size = leaves.size.copy()
        self.open_ = np.ones(len(leaves.ids), np.bool_)
        self.gone: dict[int, list[int]] = {}
        self._caps = caps
        self._centroid = leaves.centroid.copy()
        self._parent = leaves.parent
        order = np.argsort(leaves.parent, kind="stable")
        cuts = np.flatnonzero(np.diff(leaves.parent[order])) + 1
        self._siblings = {int(leaves.parent[at[0]]): at for at in np.split(order, cuts)}

    def partner(self, small: int) -> int | None:
        """The nearest open leaf with room: a sibling, else any; None when it is the last."""
        siblings = self._siblings[int(self._parent[small])]
        everyone: I64 | None = None
        for cap in (*self._caps, None):
            found = self._nearest(small, siblings, self._caps[0]) if cap == self._caps[0] else None
            if found is None:
                everyone = np.flatnonzero(self.open_) if everyone is None else everyone
                found = self._nearest(small, everyone, cap)
            if found is not None:
                return found
        return None

    def _nearest(self, small: int, among: I64, cap: int | None) -> int | None:
        eligible = self.open_[among] & (among != small)
        if cap is not None:
            eligible &= self.size[among] + self.size[small] <= cap
        at = among[eligible]
        if not len(at):
            return None
        gap = self._centroid[at] - self._centroid[small]
        return int(at[np.einsum("nd,nd->n", gap, gap).argmin()])

    def join(self, one: int, other: int) -> int:
        """Put the smaller into the larger; returns the larger."""
        target, gone = (other, one) if self.size[other] >= self.size[one] else (one, other)
        joint = self.size[target] + self.size[gone]
        if joint:
            mine, its = self._centroid[target] * self.size[target], self._centroid[gone] * self.size[gone]
            self._centroid[target] = (mine + its) / joint
        self.size[target], self.open_[gone] = joint, False
        self.gone.setdefault(target, []).extend([gone, *self.gone.pop(gone, [])])
        return target
