"""What needs rebalancing, and how: plans computed from the live view, without changing anything."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.keys import LeafState
from indexer.rebalance.kmeans import balanced_kmeans
from indexer.view import FacetView, LiveView
from schemas.config import RebalanceConfig

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

RETRY_GROWTH = 1.5
"""An unsplittable leaf is tried again once it has grown by this factor."""


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """One leaf into several.

    Attributes:
        version: of the leaf when planned; another one at applying voids the plan.
        members: (n,) ordinals, ascending.
        labels: (n,) child of each member.
        centroids: (k, d) float32.
    """

    facet: int
    leaf: int
    version: int
    members: npt.NDArray[np.uint32]
    labels: I64
    centroids: F32


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Small leaves into ``target``. ``versions`` are those of (target, *leaves) when planned."""

    facet: int
    target: int
    leaves: tuple[int, ...]
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MarkPlan:
    """A leaf's state changes: it can't be brought within bounds, or no longer needs the mark."""

    facet: int
    leaf: int
    version: int
    state: LeafState


Plan = SplitPlan | MergePlan | MarkPlan


def plan_round(view: LiveView, bounds: tuple[int, int], config: RebalanceConfig, *, merges: bool) -> list[Plan]:
    """Plans that move about ``round_items`` members, the most overloaded leaves first; empty when nothing is to do.

    Args:
        view: read under its lock, briefly; the k-means runs outside it.
        bounds: (B_low, B_upp).
        config: fill, seed and ``round_items``.
        merges: whether undersized leaves are looked at.
    """
    plans: list[Plan] = []
    budget = config.round_items
    for facet in range(len(view.facets)):
        with view.lock:
            plans += _plan_marks(view.facets[facet], facet, bounds)
            oversized = splittable(view.facets[facet], bounds[1])
            cost = view.facets[facet].sizes()[oversized]
        for leaf, members in zip(oversized.tolist(), cost.tolist(), strict=True):
            if budget <= 0:
                return plans
            plans.append(_plan_split(view, facet, leaf, bounds, config))
            budget -= members
    for facet in range(len(view.facets) if merges else 0):
        if budget <= 0:
            break
        with view.lock:
            standing = _Leaves.of(view.facets[facet])
        found, spent = _plan_merges(standing, facet, bounds, config.fill, budget)
        budget -= spent
        plans += found
    return plans


def splittable(facet: FacetView, high: int) -> I64:
    """Live leaves above B_upp that are worth trying, the largest first."""
    leaves, sizes = facet.leaves, facet.sizes()
    stuck = (leaves["state"] == LeafState.UNSPLITTABLE) & (sizes <= leaves["marked_size"] * RETRY_GROWTH)
    found = np.flatnonzero(leaves["alive"] & (sizes > high) & ~stuck)
    return found[np.argsort(-sizes[found], kind="stable")]


def _plan_marks(facet: FacetView, number: int, bounds: tuple[int, int]) -> list[Plan]:
    """Marks to set on a facet's only leaf when it is small, and marks that no longer hold."""
    low, high = bounds
    leaves, sizes, alive = facet.leaves, facet.sizes(), facet.alive()
    plans: list[Plan] = []
    for leaf in alive[leaves["state"][alive] != LeafState.NORMAL].tolist():
        few = leaves["state"][leaf] == LeafState.FEW_ITEMS and (sizes[leaf] >= low or len(alive) > 1)
        fits = leaves["state"][leaf] == LeafState.UNSPLITTABLE and sizes[leaf] <= high
        if few or fits:
            plans.append(MarkPlan(number, leaf, int(leaves["version"][leaf]), LeafState.NORMAL))
    if len(alive) == 1 and sizes[alive[0]] < low and leaves["state"][alive[0]] == LeafState.NORMAL:
        plans.append(MarkPlan(number, int(alive[0]), int(leaves["version"][alive[0]]), LeafState.FEW_ITEMS))
    return plans


def _plan_split(view: LiveView, number: int, leaf: int, bounds: tuple[int, int], config: RebalanceConfig) -> Plan:
    facet = view.facets[number]
    with view.lock:
        version = int(facet.leaves["version"][leaf])
        members = np.sort(facet.members.row(leaf))
        vectors = view.vectors(members.astype(np.int64), number).astype(np.float32)
    if not len(members) or (vectors == vectors[0]).all():
        return MarkPlan(number, leaf, version, LeafState.UNSPLITTABLE)
    k, floor, cap = split_shape(len(members), bounds, config.fill)
    labels, centroids = balanced_kmeans(vectors, k, floor, cap, config.seed * 1_000_003 + number * 65_537 + leaf)
    return SplitPlan(number, leaf, version, members, labels, centroids)


def split_shape(size: int, bounds: tuple[int, int], fill: float) -> tuple[int, int, int]:
    """(children, floor, cap) for a leaf of ``size`` > B_upp: children of about ``fill`` * B_upp, all within bounds."""
    low, high = bounds
    k = max(2, math.ceil(size / high), min(math.ceil(size / (fill * high)), size // low))
    mean = size / k
    floor = min(size // k, max(low, int(mean / 4)))
    cap = min(high, max(math.ceil(mean), int(mean * 1.3)))
    return k, floor, cap


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


def _plan_merges(
    leaves: _Leaves, number: int, bounds: tuple[int, int], fill: float, budget: int
) -> tuple[list[MergePlan], int]:
    """Join undersized leaves with the nearest that has room, same first-layer parent preferred.

    Smallest first. When no partner keeps the joint size within bounds the nearest is taken all the same: the next
    round splits the result into two halves that are.

    Returns:
        The plans, and how much of the budget they take: members moved plus one for each leaf.
    """
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
    return plans, cost


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
