"""What needs rebalancing, in which order, and how: plans computed from the live view without changing anything."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from indexer.keys import LeafState
from indexer.rebalance.marks import plan_marks, plan_recenter
from indexer.rebalance.merge import plan_merges
from indexer.rebalance.plans import Parted, Plan
from indexer.rebalance.reassign import plan_reassign
from indexer.rebalance.split import plan_split
from indexer.view import FacetView, LiveView
from schemas.config import RebalanceConfig

I64 = npt.NDArray[np.int64]

RETRY_GROWTH = 1.5
"""An unsplittable leaf is tried again once it has grown by this factor."""


def plan_round(
    view: LiveView,
    bounds: tuple[int, int],
    config: RebalanceConfig,
    *,
    merges: bool,
    merge_items: int | None = None,
    parted: Sequence[Parted] = (),
) -> Generator[Plan, None, None]:
    """Plans that move about ``round_items`` members; nothing when nothing is to do.

    Marks come first, then splits, what needs them most first (see :func:`splits_due`), then members to reassign, then
    merges. Splits are computed on ``plan_threads`` worker threads, the next ones while the caller applies the first;
    what comes after them is planned when it is asked for, from the view as it is then.

    Args:
        view: read under its lock, shared and briefly; all computing happens outside it.
        bounds: (B_low, B_upp).
        config: fill, seed, budget and weights.
        merges: whether undersized leaves, and those with an old centroid, are looked at.
        merge_items: members that merges move at most in each facet, each leaf counting as one; None: what is left.
        parted: splits whose new borders have not been looked at.
    """
    facets = range(len(view.facets))
    for facet in facets:
        yield from plan_marks(view, facet, bounds)
    budget = config.round_items
    due = []
    for facet, leaf, size in splits_due(view, bounds[1], config.query_weight):
        if budget <= 0:
            break
        due.append((facet, leaf))
        budget -= size
    if due:
        workers = ThreadPoolExecutor(config.plan_threads, "planner")
        try:
            for future in [workers.submit(plan_split, view, *each, bounds, config) for each in due]:
                plan = future.result()
                if plan is not None:
                    yield plan
        finally:
            workers.shutdown(cancel_futures=True)
    for each in parted if config.reassign else ():
        moves = plan_reassign(view, each, bounds, config)
        if moves is not None:
            yield moves
            budget -= len(moves.members)
    for facet in facets if merges else ():
        if budget <= 0:
            return
        most = budget if merge_items is None else min(budget, merge_items)
        found, spent = plan_merges(view, facet, bounds, config.fill, most)
        budget -= spent
        yield from found
    for facet in facets if merges else ():
        centroids = plan_recenter(view, facet, bounds[0], config.round_items)
        if centroids is not None:
            yield centroids


def splits_due(view: LiveView, high: int, query_weight: float) -> list[tuple[int, int, int]]:
    """(facet, leaf, size) of leaves worth splitting, the most urgent first.

    Urgency is the size, times 1 for a leaf that nobody reads up to 1 + ``query_weight`` for the one read most.
    """
    found: list[tuple[int, int, int]] = []
    reads: list[float] = []
    with view.lock.shared():
        for number, facet in enumerate(view.facets):
            leaves = splittable(facet, high)
            found += [(number, leaf, int(facet.sizes()[leaf])) for leaf in leaves.tolist()]
            reads += view.reads.of(facet.members.rows(leaves)).tolist()
    most = max(reads, default=0.0) or 1.0
    urgency = [size * (1 + query_weight * read / most) for (_, _, size), read in zip(found, reads, strict=True)]
    return [found[at] for at in np.argsort(-np.array(urgency), kind="stable").tolist()]


def splittable(facet: FacetView, high: int) -> I64:
    """Live leaves above B_upp that are worth trying."""
    leaves, sizes = facet.leaves, facet.sizes()
    stuck = (leaves["state"] == LeafState.UNSPLITTABLE) & (sizes <= leaves["marked_size"] * RETRY_GROWTH)
    return np.flatnonzero(leaves["alive"] & (sizes > high) & ~stuck)
