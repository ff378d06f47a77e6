"""Plans into the store: each one atomic write, revalidated against what happened since it was made."""

from __future__ import annotations

from indexer.failpoints import failpoint
from indexer.rebalance.marks import apply_mark, apply_recenter
from indexer.rebalance.merge import apply_merge
from indexer.rebalance.plans import MarkPlan, MergePlan, Outcome, Plan, ReassignPlan, RecenterPlan, SplitPlan
from indexer.rebalance.reassign import apply_reassign
from indexer.rebalance.split import apply_split
from indexer.writer import IndexWriter


def apply_plan(writer: IndexWriter, plan: Plan, bounds: tuple[int, int]) -> Outcome:
    """Apply one plan, or its first step, or drop it if its leaf is no longer what it was.

    Raises:
        StoreError: if the disk refuses; nothing is changed then.
    """
    match plan:
        case SplitPlan():
            return apply_split(writer, plan, bounds)
        case MergePlan():
            return apply_merge(writer, plan)
        case MarkPlan():
            return apply_mark(writer, plan)
        case RecenterPlan():
            return apply_recenter(writer, plan)
        case ReassignPlan():
            return apply_reassign(writer, plan)


def apply_bounds(writer: IndexWriter, bounds: tuple[int, int]) -> None:
    """Put new bounds in force, with a journal entry."""
    view = writer.view
    totals = view.totals.model_copy(deep=True)
    write = writer.store.batch()
    write.note(
        totals, op="bounds", before=list(totals.bounds), after=list(bounds), live=totals.items_live,
        why="as configured, or as the number of live items asks for",
    )  # fmt: skip
    totals.bounds = bounds
    write.totals(totals)
    failpoint("bounds.before")
    writer.store.write(write)
    failpoint("bounds.after")
    with view.lock:
        view.totals = totals
