"""The compactor: plans from the view, lets the single writer apply, until every leaf is within bounds or marked."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from typing import Final

import numpy as np

from indexer.failpoints import failpoint
from indexer.rebalance.apply import apply_bounds, apply_plan
from indexer.rebalance.bounds import bounds_for
from indexer.rebalance.plan import plan_round, splittable
from indexer.rebalance.plans import MergePlan, Outcome, Parted, Plan, SplitPlan
from indexer.view import LiveView
from indexer.writer import IndexWriter
from schemas.config import RebalanceConfig
from schemas.errors import FacetstreamError

RunOnWriter = Callable[[Callable[[IndexWriter], Outcome | None]], Outcome | None]
"""Runs a change on the writer's thread and returns its outcome."""

_MAX_ROUNDS: Final = 100_000
_PARTED: Final = 256
"""Splits whose borders wait to be looked at; the oldest are forgotten beyond that."""
_READS_HALF_LIFE_S: Final = 60.0
_FORGET_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did. ``moved`` counts all members that changed leaves."""

    splits: int = 0
    merges: int = 0
    marks: int = 0
    recenters: int = 0
    reassigns: int = 0
    dropped: int = 0
    moved: int = 0

    def __add__(self, other: Round) -> Round:
        return Round(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Round)))

    @classmethod
    def of(cls, outcome: Outcome) -> Round:
        """One outcome; a split counts when its last step is done."""
        if not outcome.applied:
            return cls(dropped=1)
        done = 0 if outcome.rest is not None else 1
        return cls(**{f"{outcome.op}s": done}, moved=outcome.moved)

    @property
    def idle(self) -> bool:
        """Nothing was left to do."""
        return self == Round()


class Compactor:
    """Rebalances one store.

    Args:
        view: of the store.
        config: bounds and pace.
        run: how a change reaches the writer: directly when this thread is the writer, else through its queue.
        on_outcome: told what came of every plan, also when a later one of its round fails.
    """

    def __init__(
        self,
        view: LiveView,
        config: RebalanceConfig,
        run: RunOnWriter,
        on_outcome: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self._view = view
        self._config = config
        self._run = run
        self._on_outcome = on_outcome
        self._parted: deque[Parted] = deque(maxlen=_PARTED)
        self._forgot_at = -math.inf

    def round(self, *, merges: bool = True, merge_items: int | None = None) -> Round:
        """One bounded round: about ``round_items`` members moved, about ``round_ms`` of the writer's time taken.

        Args:
            merges: whether leaves are merged.
            merge_items: members that merges move at most in each facet; None: as many as the round may.

        Raises:
            StoreError: if the disk refuses.
        """
        self._forget_reads()
        totals = self._view.totals
        bounds = bounds_for(self._config, totals.items_live, totals.bounds)
        if bounds != totals.bounds:
            self._run(lambda writer: apply_bounds(writer, bounds))
        parted = tuple(self._parted)
        self._parted.clear()
        done, spent_ms = Round(), 0.0
        with closing(
            plan_round(self._view, bounds, self._config, merges=merges, merge_items=merge_items, parted=parted)
        ) as plans:
            for plan in plans:
                if isinstance(plan, SplitPlan | MergePlan):
                    failpoint("split.planned" if isinstance(plan, SplitPlan) else "merge.planned")
                rest: Plan | None = plan
                while rest is not None:
                    outcome = self._run(partial(apply_plan, plan=rest, bounds=bounds))
                    if outcome is None:
                        break
                    done += Round.of(outcome)
                    spent_ms += outcome.apply_ms
                    self._on_outcome(outcome)
                    if outcome.parted is not None and self._config.reassign:
                        self._parted.append(outcome.parted)
                    rest = outcome.rest
                if spent_ms > self._config.round_ms:
                    self._parted.extendleft(reversed(parted))  # they may not have had their turn
                    break
        return done

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
            if done.idle and not self._parted:
                return total
            total += done
            progress(total)
        raise FacetstreamError("rebalancing did not come to rest; please report this with the journal's last entries")

    def overloaded(self) -> bool:
        """Whether a splittable leaf is so far above B_upp that ingestion should wait for its split."""
        limit = self._config.backpressure * self._view.totals.bounds[1]
        with self._view.lock.shared():
            for facet in self._view.facets:
                sizes = facet.sizes()
                if sizes.max(initial=0) > limit and (sizes[splittable(facet, int(limit))] > limit).any():
                    return True
        return False

    def _forget_reads(self) -> None:
        now = time.monotonic()
        rows = len(self._view.members.start)
        if now - self._forgot_at < _FORGET_S and rows <= len(self._view.reads):
            return
        share = 0.5 ** ((now - self._forgot_at) / _READS_HALF_LIFE_S)
        self._forgot_at = now
        self._view.reads.forget(share, rows)


def out_of_bounds(view: LiveView) -> int:
    """Unmarked live leaves whose size is outside the bounds in force."""
    low, high = view.totals.bounds
    count = 0
    with view.lock.shared():
        for facet in view.facets:
            sizes, leaves = facet.sizes(), facet.leaves
            count += int(np.count_nonzero(leaves["alive"] & (leaves["state"] == 0) & ((sizes < low) | (sizes > high))))
    return count
