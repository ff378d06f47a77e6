"""The compactor: plans from the view, lets the single writer apply, until every leaf is within bounds or marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import numpy as np

from indexer.failpoints import failpoint
from indexer.rebalance.apply import Outcome, apply_bounds, apply_plan
from indexer.rebalance.bounds import bounds_for
from indexer.rebalance.plan import MarkPlan, SplitPlan, plan_round, splittable
from indexer.view import LiveView
from indexer.writer import IndexWriter
from schemas.config import RebalanceConfig
from schemas.errors import FacetstreamError

RunOnWriter = Callable[[Callable[[IndexWriter], Outcome | None]], Outcome | None]
"""Runs a change on the writer's thread and returns its outcome."""

_MAX_ROUNDS = 100_000


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did."""

    splits: int = 0
    merges: int = 0
    marks: int = 0
    dropped: int = 0
    moved: int = 0

    def __add__(self, other: Round) -> Round:
        return Round(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Round)))

    @property
    def idle(self) -> bool:
        """Nothing was left to do."""
        return not (self.splits or self.merges or self.marks or self.dropped)


class Compactor:
    """Rebalances one store.

    Args:
        view: of the store.
        config: bounds and pace.
        run: how a change reaches the writer: directly when this thread is the writer, else through its queue.
        on_applied: told of every plan that was applied, also when a later one of its round fails.
    """

    def __init__(
        self,
        view: LiveView,
        config: RebalanceConfig,
        run: RunOnWriter,
        on_applied: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self._view = view
        self._config = config
        self._run = run
        self._on_applied = on_applied

    def round(self, *, merges: bool = True) -> Round:
        """One bounded round: about ``rebalance.round_items`` members moved.

        Raises:
            StoreError: if the disk refuses.
        """
        totals = self._view.totals
        bounds = bounds_for(self._config, totals.items_live, totals.bounds)
        if bounds != totals.bounds:
            self._run(lambda writer: apply_bounds(writer, bounds))
        plans = plan_round(self._view, bounds, self._config, merges=merges)
        outcomes = []
        for plan in plans:
            if not isinstance(plan, MarkPlan):
                failpoint("split.planned" if isinstance(plan, SplitPlan) else "merge.planned")
            outcome = self._run(partial(apply_plan, plan=plan, bounds=bounds))
            if outcome is not None:
                outcomes.append(outcome)
                if outcome.applied:
                    self._on_applied(outcome)
        return Round(
            splits=sum(o.applied for o in outcomes if o.op == "split"),
            merges=sum(o.applied for o in outcomes if o.op == "merge"),
            marks=sum(o.applied for o in outcomes if o.op == "mark"),
            dropped=sum(not o.applied for o in outcomes),
            moved=sum(o.moved for o in outcomes),
        )

    def run_until_idle(
        self, progress: Callable[[Round], None] = lambda _: None, stopped: Callable[[], bool] = lambda: False
    ) -> Round:
        """Rounds until nothing is left to do, or ``stopped`` between two of them; returns their sum.

        Raises:
            FacetstreamError: if the work does not end, which would be a defect.
        """
        total = Round()
        for _ in range(_MAX_ROUNDS):
            if stopped():
                return total
            done = self.round()
            if done.idle:
                return total
            total += done
            progress(total)
        raise FacetstreamError("rebalancing did not come to rest; please report this with the journal's last entries")

    def overloaded(self) -> bool:
        """Whether a splittable leaf is so far above B_upp that ingestion should wait for its split."""
        high = self._view.totals.bounds[1]
        with self._view.lock:
            for facet in self._view.facets:
                found = splittable(facet, high)
                if len(found) and facet.sizes()[found[0]] > self._config.backpressure * high:
                    return True
        return False


def out_of_bounds(view: LiveView) -> int:
    """Unmarked live leaves whose size is outside the bounds in force."""
    low, high = view.totals.bounds
    count = 0
    with view.lock:
        for facet in view.facets:
            sizes, leaves = facet.sizes(), facet.leaves
            count += int(np.count_nonzero(leaves["alive"] & (leaves["state"] == 0) & ((sizes < low) | (sizes > high))))
    return count
