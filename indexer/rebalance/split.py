"""A leaf above B_upp into several: planned from a copy of its members, moved in steps that each leave all sound."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.failpoints import failpoint
from indexer.keys import LeafRecord, LeafState
from indexer.rebalance.centres import widened
from indexer.rebalance.kmeans import balanced_kmeans
from indexer.rebalance.moving import Moves, note, put_leaf, put_moves, put_routes, show_routes
from indexer.rebalance.plans import MarkPlan, Outcome, Parted, Plan, SplitPlan, current
from indexer.routing import nearest_of
from indexer.view import FacetView, LiveView
from indexer.writer import IndexWriter
from schemas.config import RebalanceConfig

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]

_MAX_GROWTH = 2.0
_MIN_STAYED = 0.5


def plan_split(view: LiveView, number: int, leaf: int, bounds: tuple[int, int], config: RebalanceConfig) -> Plan | None:
    """How to cut one leaf, or the mark it gets if all its members are alike; None if it shrank. Safe on any thread."""
    began = time.perf_counter()
    facet = view.facets[number]
    with view.lock.shared():
        version = int(facet.leaves["version"][leaf])
        members = facet.members.row(leaf)
        start = view.members.start[facet.members.rows(np.array(leaf))]
        halves = view.members.bits[start : start + len(members)].view(np.float16).copy()
    if len(members) <= bounds[1]:
        return None
    order = np.argsort(members)
    members, halves = members[order], halves[order]
    if (halves == halves[0]).all():
        return MarkPlan(number, leaf, version, LeafState.UNSPLITTABLE, _ms_since(began))
    k, floor, cap = split_shape(len(members), bounds, config.fill)
    seed = config.seed * 1_000_003 + number * 65_537 + leaf
    labels, centroids = balanced_kmeans(widened(halves), k, floor, cap, seed)
    return SplitPlan(number, leaf, version, members, labels, centroids, config.step_items, _ms_since(began))


def split_shape(size: int, bounds: tuple[int, int], fill: float) -> tuple[int, int, int]:
    """(children, floor, cap) for a leaf of ``size`` > B_upp: children of about ``fill`` * B_upp, all within bounds."""
    low, high = bounds
    k = max(2, math.ceil(size / high), min(math.ceil(size / (fill * high)), size // low))
    mean = size / k
    floor = min(size // k, max(low, int(mean / 4)))
    cap = min(high, max(math.ceil(mean), int(mean * 1.3)))
    return k, floor, cap


def apply_split(writer: IndexWriter, plan: SplitPlan, bounds: tuple[int, int]) -> Outcome:
    """Move the first children out of the leaf; what is left of the plan comes back in the outcome.

    A step takes as many children as ``plan.step`` members make, at least one. Until the last one the leaf keeps the
    rest of its members and all its routes, so that whatever happens in between, the store is sound and the leaf can be
    planned anew.
    """
    began = time.perf_counter()
    view, number = writer.view, plan.facet
    facet = view.facets[number]
    if not current(facet, plan.leaf, plan.version):
        return Outcome("split", applied=False)
    present = np.sort(facet.members.row(plan.leaf))
    labels = _labels_now(view, plan, present)
    sizes = np.bincount(labels, minlength=len(plan.centroids))
    stayed = len(np.intersect1d(present, plan.members, assume_unique=True))
    if len(present) > _MAX_GROWTH * len(plan.members) or stayed < _MIN_STAYED * len(plan.members) or sizes.min() < 1:
        return Outcome("split", applied=False)
    taken = max(1, int(np.searchsorted(np.cumsum(sizes), plan.step, "right")))
    last = taken == len(sizes)
    going = labels < taken
    members, labels, sizes = present[going], labels[going], sizes[:taken]

    totals = view.totals.model_copy(deep=True)
    new = totals.next_leaf[number] + np.arange(taken)
    totals.next_leaf[number] += taken
    totals.splits += last
    write = writer.store.batch()
    for leaf, centroid in zip(new.tolist(), plan.centroids, strict=False):
        put_leaf(write, number, leaf, LeafRecord(LeafState.NORMAL, 0, 0, centroid))
    version = plan.version + 1
    if last:
        write.delete_many("leaves", [keys.FACET_U32.pack(number, plan.leaf)])
    else:
        put_leaf(
            write, number, plan.leaf, LeafRecord(LeafState.NORMAL, version, 0, facet.leaves["centroid"][plan.leaf])
        )
    routes = _routes(view, plan, members, labels, new, last=last)
    put_routes(write, number, routes)
    came_from = np.full(len(members), plan.leaf)
    put_moves(write, view, number, members, came_from, new[labels])
    moves = Moves(view, number, members, came_from, new[labels])
    note(
        write, totals, plan.plan_ms, began, time.perf_counter(),
        op="split", facet=number, leaf=plan.leaf, into=new.tolist(), size=len(present), sizes=sizes.tolist(),
        left=len(present) - len(members), moved=len(members), why=f"size above {bounds[1]}",
    )  # fmt: skip
    write.totals(totals)
    failpoint("split.before")
    writer.store.write(write)
    failpoint("split.after")

    with view.lock:
        facet.ensure_leaves(int(new[-1]) + 1)
        facet.leaves["alive"][new] = True
        facet.leaves["centred"][new] = sizes
        facet.set_centroids(new, plan.centroids[:taken])
        moves.show()
        show_routes(facet, routes)
        _show_raws(facet, routes, new)
        if last:
            facet.retire_leaf(plan.leaf)
        else:
            facet.leaves["version"][plan.leaf] = version
            facet.leaves["state"][plan.leaf] = LeafState.NORMAL
            facet.leaves["marked_size"][plan.leaf] = 0
        view.totals = totals
    return Outcome(
        "split",
        applied=True,
        moved=len(members),
        plan_ms=plan.plan_ms,
        apply_ms=_ms_since(began),
        rest=None if last else plan.after(taken),
        parted=Parted(number, plan.leaf, facet.leaves["centroid"][plan.leaf].copy(), new),
    )


def _labels_now(view: LiveView, plan: SplitPlan, members: U32) -> I64:
    """(n,) child of each present member: as planned, newcomers to the nearest centroid."""
    at = np.searchsorted(plan.members, members)
    at_most = np.minimum(at, len(plan.members) - 1)
    planned = plan.members[at_most] == members
    labels = np.where(planned, plan.labels[at_most], -1)
    late = np.flatnonzero(~planned)
    if len(late):
        vectors = view.vectors(members[late].astype(np.int64), plan.facet).astype(np.float32)
        labels[late] = _nearest(vectors, plan.centroids)
    return labels


def _nearest(vectors: F32, centroids: F32) -> I64:
    """(n,) the nearest of all centroids (k, d) to each of (n, d)."""
    k = len(centroids)
    return nearest_of(vectors, centroids, np.tile(np.arange(k), len(vectors)), np.full(len(vectors), k))


def _routes(view: LiveView, plan: SplitPlan, members: U32, labels: I64, new: I64, *, last: bool) -> dict[int, U32]:
    """New candidates of raw indices that led to the leaf: the children that hold their members come in.

    With the last step the leaf goes; a raw index that led nowhere else leads to the nearest child then.
    """
    facet = view.facets[plan.facet]
    pairs = np.unique(np.stack([view.items["raw"][members, plan.facet].astype(np.int64), new[labels]], 1), axis=0)
    held: dict[int, list[int]] = {}
    for raw, leaf in pairs.tolist():
        held.setdefault(raw, []).append(leaf)
    if not last:
        return {raw: np.append(facet.routes.row(raw), np.array(leaves, np.uint32)) for raw, leaves in held.items()}
    out: dict[int, U32] = {}
    bare = []
    for raw in facet.raws.row(plan.leaf).tolist():
        others = facet.routes.row(raw)
        out[raw] = np.append(others[others != plan.leaf], np.array(held.get(raw, []), np.uint32))
        if not len(out[raw]):
            bare.append(raw)
    if bare:
        nearest = _nearest(facet.reconstruct(np.array(bare)), plan.centroids)
        out |= {raw: new[[child]].astype(np.uint32) for raw, child in zip(bare, nearest.tolist(), strict=True)}
    return out


def _show_raws(facet: FacetView, routes: dict[int, U32], new: I64) -> None:
    """The raw indices that lead to each of the new leaves."""
    raws = np.repeat(np.fromiter(routes, np.uint32), [len(leaves) for leaves in routes.values()])
    flat = np.concatenate(list(routes.values())).astype(np.int64) if routes else np.empty(0, np.int64)
    mine = flat >= new[0]
    facet.raws.append(flat[mine], raws[mine])


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1_000
