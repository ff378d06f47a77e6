"""After a split: members near the new borders change to a nearer leaf, as LIRE does (SPFresh, SOSP 2023).

Only two kinds of members can be in the wrong leaf then: those of the leaf that was split to which its old centroid was
nearer than any of the new ones, and those of neighbours to which one of the new centroids is nearer than the old one.
Both may change only among the candidate leaves of their raw index.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from indexer.failpoints import failpoint
from indexer.rebalance.centres import widened
from indexer.rebalance.moving import Moves, note, put_moves
from indexer.rebalance.plans import Outcome, Parted, ReassignPlan, current
from indexer.routing import nearest_of
from indexer.view import FacetView, LiveView
from indexer.writer import IndexWriter
from schemas.config import RebalanceConfig

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_NEIGHBOURS = 64
_SPARE = 0.9
"""A leaf takes members until it holds this share of B_upp, so that none is split for them."""


def plan_reassign(
    view: LiveView, parted: Parted, bounds: tuple[int, int], config: RebalanceConfig
) -> ReassignPlan | None:
    """Who is nearer to another candidate leaf since a split; None if nobody is. Safe on any thread."""
    began = time.perf_counter()
    number = parted.facet
    with view.lock.shared():
        facet = view.facets[number]
        children = parted.children[facet.leaves["alive"][parted.children]]
        leaves = np.concatenate([children, _neighbours(facet, children, parted.centroid, config.round_items)])
        members, counts = facet.members.gather(leaves)
        vectors = view.vectors(members.astype(np.int64), number)
        raws = view.items["raw"][members, number].astype(np.int64)
        routes, choices = facet.routes.gather(raws)
        centroids = facet.leaves["centroid"].copy()
        versions = dict(zip(leaves.tolist(), facet.leaves["version"][leaves].tolist(), strict=True))
    if not len(children):
        return None
    x = widened(vectors)
    at = np.repeat(leaves, counts)
    old = _gaps(x, parted.centroid[None])[:, 0]
    new = _gaps(x, centroids[children]).min(1)
    doubtful = np.where(np.isin(at, children), old <= new, new <= old) & (choices > 1)
    rows = np.flatnonzero(doubtful)
    if not len(rows):
        return None
    mine = np.repeat(doubtful, choices)
    nearest = nearest_of(x[rows], centroids, routes[mine].astype(np.int64), choices[rows])
    gain = _gap_of(x[rows], centroids[at[rows]]) - _gap_of(x[rows], centroids[nearest])
    sizes = dict(zip(leaves.tolist(), counts.tolist(), strict=True))
    moving = _within_bounds(at[rows], nearest, gain, sizes, bounds)
    if not len(moving):
        return None
    chosen = rows[moving]
    involved = set(at[chosen].tolist()) | set(nearest[moving].tolist())
    return ReassignPlan(
        number,
        members[chosen].astype(np.int64),
        at[chosen],
        nearest[moving],
        {leaf: versions[leaf] for leaf in involved},
        len(rows),
        parted.leaf,
        (time.perf_counter() - began) * 1_000,
    )


def apply_reassign(writer: IndexWriter, plan: ReassignPlan) -> Outcome:
    """Move those who are still where they were, if both leaves are still what they were."""
    began = time.perf_counter()
    view, number = writer.view, plan.facet
    facet = view.facets[number]
    good = np.array([leaf for leaf, version in plan.versions.items() if current(facet, leaf, version)], np.int64)
    stays = np.isin(plan.old, good) & np.isin(plan.new, good)
    stays &= view.members.holds(facet.members.rows(plan.old), plan.members)
    members, old, new = plan.members[stays], plan.old[stays], plan.new[stays]
    leads, counts = facet.routes.gather(view.items["raw"][members, number].astype(np.int64))
    still = np.zeros(len(members), np.bool_)  # an item may have come back with another raw index
    np.logical_or.at(still, np.repeat(np.arange(len(members)), counts), leads == np.repeat(new, counts))
    members, old, new = members[still], old[still], new[still]
    if not len(members):
        return Outcome("reassign", applied=False)
    write = writer.store.batch()
    put_moves(write, view, number, members, old, new)
    moves = Moves(view, number, members, old, new)
    totals = view.totals.model_copy(deep=True)
    note(
        write, totals, plan.plan_ms, began, time.perf_counter(),
        op="reassign", facet=number, leaf=plan.cause, leaves=sorted(plan.versions), checked=plan.checked,
        moved=len(members), why="a split moved the borders",
    )  # fmt: skip
    write.totals(totals)
    failpoint("reassign.before")
    writer.store.write(write)
    failpoint("reassign.after")
    with view.lock:
        moves.show()
        view.totals = totals
    return Outcome(
        "reassign",
        applied=True,
        moved=len(members),
        checked=plan.checked,
        plan_ms=plan.plan_ms,
        apply_ms=(time.perf_counter() - began) * 1_000,
    )


def _neighbours(facet: FacetView, children: I64, centroid: F32, budget: int) -> I64:
    """Other leaves that share a raw index with the new ones, the nearest first, of about ``budget`` members in all."""
    raws = np.unique(facet.raws.gather(children)[0]).astype(np.int64)
    shared = np.setdiff1d(facet.routes.gather(raws)[0], children).astype(np.int64)
    shared = shared[np.argsort(_gaps(facet.leaves["centroid"][shared], centroid[None])[:, 0])][:_NEIGHBOURS]
    return shared[: int(np.searchsorted(np.cumsum(facet.sizes()[shared]), budget, "right"))]


def _within_bounds(
    old: I64, new: I64, gain: npt.NDArray[np.floating], sizes: dict[int, int], bounds: tuple[int, int]
) -> I64:
    """Positions of those who may move, the greatest gain first: no leaf falls below twice B_low or fills up."""
    least, most = 2 * bounds[0], int(_SPARE * bounds[1])
    moving = []
    for at in np.argsort(-gain, kind="stable").tolist():
        leaf, to = int(old[at]), int(new[at])
        if gain[at] > 0 and to in sizes and sizes[leaf] > least and sizes[to] < most:
            sizes[leaf] -= 1
            sizes[to] += 1
            moving.append(at)
    return np.array(moving, np.int64)


def _gaps(x: F32, centroids: F32) -> F32:
    """(n, m) squared distances."""
    return np.asarray(
        np.einsum("nd,nd->n", x, x)[:, None] - 2 * (x @ centroids.T) + np.einsum("md,md->m", centroids, centroids),
        np.float32,
    )


def _gap_of(x: F32, centroids: F32) -> F32:
    """(n,) squared distances, row by row."""
    return np.asarray(np.einsum("nd,nd->n", x - centroids, x - centroids), np.float32)
