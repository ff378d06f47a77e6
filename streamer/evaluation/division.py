"""How the work of one seed is divided among processes.

A process needs the models of every line that it answers for, and trains them itself: training is the same in each, so
that nothing need be handed over or waited for. What that costs is weighed against what it spares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.evaluation.lineup import BEGIN_WITH, LEARNING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from streamer.evaluation.lineup import Part


def cost(group: Collection[Part]) -> float:
    """Seconds, roughly: models of the lines, and the parts."""
    lines = {part.line for part in group}
    learned = (LEARNING[line] for line in lines if BEGIN_WITH.get(line) not in lines)
    return sum(learned) + sum(part.cost for part in group)


def divided(parts: Sequence[Part], most: int) -> list[list[Part]]:
    """Groups of parts, costliest first, each with its parts in the given order.

    Of all ways to make them, one whose costliest group is cheapest; of these, the one that costs least together.

    Args:
        parts: names differ.
        most: so many groups at most, at least 1.
    """
    search = _Search(sorted(parts, key=lambda part: -cost([part])), max(1, min(most, len(parts))))
    search.place(0, [])
    ordered = [[part for part in parts if part in group] for group in search.best]
    return sorted(ordered, key=lambda group: -cost(group))


class _Search:
    """All ways to put parts into groups, but those that cannot be better than what was found."""

    def __init__(self, parts: Sequence[Part], most: int) -> None:
        self._parts = parts
        self._most = most
        self._least = (float("inf"), float("inf"))
        self.best: list[list[Part]] = [list(parts)]

    def place(self, at: int, groups: list[list[Part]]) -> None:
        costs = [cost(group) for group in groups]
        reached = max(costs, default=0.0), sum(costs)  # groups never become cheaper
        if reached >= self._least:
            return
        if at == len(self._parts):
            self._least, self.best = reached, [list(group) for group in groups]
            return
        for group in groups:
            group.append(self._parts[at])
            self.place(at + 1, groups)
            group.pop()
        if len(groups) < self._most:
            self.place(at + 1, [*groups, [self._parts[at]]])
