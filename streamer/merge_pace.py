"""How much of the writer merging may take while events come."""

from __future__ import annotations

from typing import Final

AT_ONCE: Final = 128
"""Members that the merges of a round move at most in each facet while events come: planning thousands of merges keeps
the interpreter, and applying them the writer, for a second."""
_REST: Final = 9
"""Times as long as merging took: it has a tenth of the time then."""


def rest_s(most_s: float, took_s: float, *, merged: int, waiting: int, applied: bool) -> float:
    """Seconds without merges after a round that looked for them.

    Events that just flow by never wait in the inbox, and yet share the interpreter and the writer with every merge:
    thousands of small leaves, merged one after the other, would hold them all up.

    Args:
        most_s: ``rebalance.merge_interval_s``.
        took_s: how long the round took.
        merged: merges in it.
        waiting: batches that wait for the writer.
        applied: whether a batch was applied during the round.
    """
    if waiting or not merged:
        return most_s
    return min(most_s, _REST * took_s) if applied else 0.0
