"""B_low and B_upp: what the size of a posting list may be."""

from __future__ import annotations

import math

from schemas.config import RebalanceConfig

MIN_HIGH = 64
RATIO = 16


def bounds_for(config: RebalanceConfig, live: int, current: tuple[int, int]) -> tuple[int, int]:
    """(B_low, B_upp) for ``live`` items: as configured, else derived.

    Derived: B_upp is the power of two at or above 2 sqrt(live), at least 64, and B_low a sixteenth of it. So a leaf
    holds about sqrt(live) items, which balances the leaves a request must choose from against the members it must
    score. B_upp falls only when two powers too large, so that a count near a step does not make the bounds flap.
    """
    if config.low is not None and config.high is not None:
        return config.low, config.high
    high = max(MIN_HIGH, 1 << math.ceil(math.log2(2 * math.sqrt(max(1, live)))))
    if current[1] in (high, 2 * high) and current == (current[1] // RATIO, current[1]):
        return current
    return high // RATIO, high
