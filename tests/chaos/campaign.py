"""Faults one after the other, each upon the recovery from the last; the index is held against an undisturbed one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.chaos.faults import Fault
from tests.chaos.rig import Rig, Verdict


@dataclass
class Row:
    """What became of one kind of fault.

    Attributes:
        tried: how often it was brought about.
        missed: how often its place was not reached; not among ``tried``.
        verdicts: of the comparisons that followed.
    """

    tried: int = 0
    missed: int = 0
    kills: int = 0
    verdicts: list[Verdict] = field(default_factory=list)

    def count(self, what: str) -> int:
        """Findings of one kind, over all comparisons."""
        return sum(len(getattr(verdict, what)) for verdict in self.verdicts)


def campaign(
    rig: Rig,
    faults: Sequence[Fault],
    seed: int,
    *,
    compare_every: int,
    events: int = 1_000,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Row]:
    """Bring the faults about in their order; after every few of them compare.

    What a comparison finds is booked to each of the faults since the last one, since any may be its cause.

    Args:
        rig: a fresh one.
        faults: may hold one several times.
        seed: of the dice.
        compare_every: faults between two comparisons.
        events: fed before each fault.
        tell: progress, line by line.
    """
    dice = random.Random(seed)
    rows = {fault.name: Row() for fault in faults}
    since: list[Row] = []
    rig.more(events)
    rig.settle()  # else faults at the first start would find nothing to lose
    for number, fault in enumerate(faults, start=1):
        rig.more(events)
        row = rows[fault.name]
        reached = fault.strike(rig, dice)
        row.tried += reached
        row.missed += not reached
        row.kills += fault.kills  # a daemon whose place was not reached is killed where it is
        since.append(row)
        tell(f"{number} of {len(faults)}: {fault.name}{'' if reached else ' (not reached)'}")
        if number % compare_every == 0 or number == len(faults):
            verdict = rig.compare()
            tell(f"compared: {'equal, no violation' if verdict.clean else verdict}")
            for each in {id(row): row for row in since}.values():
                each.verdicts.append(verdict)
            since.clear()
    return rows
