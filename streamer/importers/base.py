"""What the importers share: the report of what was written, and how they tell their progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int], None]
"""Called with the number of source rows read since the last call."""


def no_progress(_rows: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import wrote.

    Attributes:
        items: ``item.created`` events, one for each item.
        updates: ``item.updated`` events.
        engagements: engagement events.
        from_ms, to_ms: times of the first and the last event, epoch milliseconds.
    """

    items: int
    updates: int
    engagements: int
    from_ms: int
    to_ms: int
