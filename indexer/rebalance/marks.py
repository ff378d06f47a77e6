"""What can't be brought within bounds is marked; leaves that grew get the mean of their members as centroid."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from indexer.failpoints import failpoint
from indexer.keys import LeafRecord, LeafState
from indexer.rebalance.centres import sums
from indexer.rebalance.moving import note, put_leaf
from indexer.rebalance.plans import MarkPlan, Outcome, RecenterPlan, current
from indexer.view import LiveView
from indexer.writer import IndexWriter

I64 = npt.NDArray[np.int64]

_GROWTH = 2
"""A centroid is computed anew when its leaf has grown by this factor since."""
_WHY = {
    LeafState.NORMAL: "the mark no longer holds",
    LeafState.UNSPLITTABLE: "all members are identical",
    LeafState.FEW_ITEMS: "the only leaf of its facet is below the lower bound",
}


def plan_marks(view: LiveView, number: int, bounds: tuple[int, int]) -> list[MarkPlan]:
    """Marks to set on a facet's only leaf when it is small, and marks that no longer hold."""
    low, high = bounds
    with view.lock.shared():
        facet = view.facets[number]
        leaves, sizes, alive = facet.leaves, facet.sizes(), facet.alive()
        plans: list[MarkPlan] = []
        for leaf in alive[leaves["state"][alive] != LeafState.NORMAL].tolist():
            few = leaves["state"][leaf] == LeafState.FEW_ITEMS and (sizes[leaf] >= low or len(alive) > 1)
            fits = leaves["state"][leaf] == LeafState.UNSPLITTABLE and sizes[leaf] <= high
            if few or fits:
                plans.append(MarkPlan(number, leaf, int(leaves["version"][leaf]), LeafState.NORMAL))
        if len(alive) == 1 and sizes[alive[0]] < low and leaves["state"][alive[0]] == LeafState.NORMAL:
            plans.append(MarkPlan(number, int(alive[0]), int(leaves["version"][alive[0]]), LeafState.FEW_ITEMS))
    return plans


def apply_mark(writer: IndexWriter, plan: MarkPlan) -> Outcome:
    """Mark a leaf, or take its mark away."""
    began = time.perf_counter()
    view = writer.view
    facet = view.facets[plan.facet]
    if not current(facet, plan.leaf, plan.version):
        return Outcome("mark", applied=False)
    size = int(facet.sizes()[plan.leaf])
    version = plan.version + 1
    write = writer.store.batch()
    record = LeafRecord(plan.state, version, size, facet.leaves["centroid"][plan.leaf])
    put_leaf(write, plan.facet, plan.leaf, record)
    totals = view.totals.model_copy(deep=True)
    note(
        write, totals, plan.plan_ms, began, time.perf_counter(),
        op="mark", facet=plan.facet, leaf=plan.leaf, state=plan.state.name.lower(), size=size, moved=0,
        why=_WHY[plan.state],
    )  # fmt: skip
    write.totals(totals)
    failpoint("mark.before")
    writer.store.write(write)
    failpoint("mark.after")
    with view.lock:
        facet.leaves["state"][plan.leaf] = plan.state
        facet.leaves["version"][plan.leaf] = version
        facet.leaves["marked_size"][plan.leaf] = size
        view.totals = totals
    apply_ms = (time.perf_counter() - began) * 1_000
    return Outcome("mark", applied=True, plan_ms=plan.plan_ms, apply_ms=apply_ms)


def plan_recenter(view: LiveView, number: int, low: int, budget: int) -> RecenterPlan | None:
    """New centroids for leaves of at least ``low`` that doubled since theirs, of about ``budget`` members in all."""
    began = time.perf_counter()
    with view.lock.shared():
        facet = view.facets[number]
        leaves, sizes = facet.leaves, facet.sizes()
        grown = np.flatnonzero(leaves["alive"] & (sizes >= np.maximum(_GROWTH * leaves["centred"], low)))
        grown = grown[: 1 + int(np.searchsorted(np.cumsum(sizes[grown]), budget))]
        members, counts = facet.members.gather(grown)
        vectors = view.vectors(members.astype(np.int64), number)
        versions = leaves["version"][grown].astype(np.int64)
    if not len(grown):
        return None
    groups = np.repeat(np.arange(len(grown)), counts)
    centroids = (sums(vectors, groups, len(grown)) / counts[:, None]).astype(np.float32)
    return RecenterPlan(number, grown, versions, counts, centroids, (time.perf_counter() - began) * 1_000)


def apply_recenter(writer: IndexWriter, plan: RecenterPlan) -> Outcome:
    """Set new centroids; nobody moves, and plans made for the leaves hold."""
    began = time.perf_counter()
    view = writer.view
    facet = view.facets[plan.facet]
    had = facet.leaves["centred"][plan.leaves]
    still = facet.leaves["alive"][plan.leaves] & (facet.leaves["version"][plan.leaves] == plan.versions)
    still &= had < plan.sizes
    leaves, sizes, centroids = plan.leaves[still], plan.sizes[still], plan.centroids[still]
    if not len(leaves):
        return Outcome("recenter", applied=False)
    write = writer.store.batch()
    now = facet.leaves
    for leaf, centroid in zip(leaves.tolist(), centroids, strict=True):
        state, marked = LeafState(now["state"][leaf]), int(now["marked_size"][leaf])
        put_leaf(write, plan.facet, leaf, LeafRecord(state, int(now["version"][leaf]), marked, centroid))
    totals = view.totals.model_copy(deep=True)
    note(
        write, totals, plan.plan_ms, began, time.perf_counter(),
        op="recenter", facet=plan.facet, leaves=leaves.tolist(), sizes=sizes.tolist(), moved=0,
        why=f"grown by a factor of {_GROWTH}",
    )  # fmt: skip
    write.totals(totals)
    failpoint("recenter.before")
    writer.store.write(write)
    failpoint("recenter.after")
    with view.lock:
        facet.set_centroids(leaves, centroids)
        facet.leaves["centred"][leaves] = sizes
        view.totals = totals
    apply_ms = (time.perf_counter() - began) * 1_000
    return Outcome("recenter", applied=True, plan_ms=plan.plan_ms, apply_ms=apply_ms)
