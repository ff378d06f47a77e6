"""(trigger, candidate) pairs: two items that one user engaged with, the trigger first, within a window.

A heavy user's history of h engagements holds h^2 / 2 pairs, so pairs are never listed: for each engagement
its possible triggers are a range of earlier positions in the history, and drawing a pair is drawing an
engagement and a position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from model_runtime.training.data import NO_SESSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_runtime.training.data import Int32Array, Int64Array, TrainingLog
    from schemas.artifact import FacetLabel
    from schemas.events import ItemContent

_TRIES: Final = 8
_CATEGORY_WORDS: Final = 16  # 1,024 categories are told apart; further ones share bits


@dataclass(frozen=True, slots=True)
class Pairs:
    """n drawn pairs.

    Attributes:
        trigger: (n,) int32 item rows.
        candidate: (n,) int32 item rows, never equal to the trigger.
        time: (n,) int64, when the candidate was engaged, epoch milliseconds.
    """

    trigger: Int32Array
    candidate: Int32Array
    time: Int64Array

    def __len__(self) -> int:
        return len(self.candidate)


class PairSampler:
    """Draws pairs for one facet's label.

    Args:
        log: the training span.
        label: what makes a pair (:class:`schemas.artifact.FacetLabel`).
        reach: how many engagements back a trigger may lie, at most.

    Attributes:
        positions: how many engagements have at least one possible trigger.
        frequency: (N,) float64, the share of draws in which each item is the candidate. For ``content``
        labels this
            is before the shared-category test, which has no closed form.
    """

    def __init__(self, log: TrainingLog, label: FacetLabel, reach: int) -> None:
        items = len(log.item_ids)
        kept = _usable(log, label)
        group = _groups(log, label)[kept]
        time = log.time[kept]
        order = np.lexsort((time, group))
        self._item, self._time = log.item[kept][order], time[order]
        first = _first_trigger(group[order], self._time, label, reach)
        position = np.arange(len(order))
        self._position = position[first < position]
        self._first = first[self._position]
        self._categories = _category_bits(log.contents) if label.kind == "content" else None
        self.positions = len(self._position)
        counts = np.bincount(self._item[self._position], minlength=items)
        self.frequency: npt.NDArray[np.float64] = counts / max(self.positions, 1)

    def draw(self, count: int, rng: np.random.Generator) -> Pairs:
        """About ``count`` pairs: engagements uniformly, then triggers uniformly; unsuitable draws are dropped."""
        if not self.positions:
            empty = np.zeros(0, np.int32)
            return Pairs(empty, empty, np.zeros(0, np.int64))
        chosen = rng.integers(0, self.positions, count)
        at, first = self._position[chosen], self._first[chosen]
        candidate = self._item[at]
        tries = _TRIES if self._categories is not None else 1
        drawn = first + (rng.random((tries, count)) * (at - first)).astype(np.int64)
        trigger = self._item[drawn]
        suits = trigger != candidate
        if self._categories is not None:
            suits &= (self._categories[trigger] & self._categories[candidate]).any(axis=-1)
        pick = suits.argmax(axis=0)  # the first try that suits
        column = np.flatnonzero(suits.any(axis=0))
        return Pairs(trigger[pick[column], column], candidate[column], self._time[at[column]])


def _usable(log: TrainingLog, label: FacetLabel) -> Int64Array:
    """Engagements that may take part in a pair."""
    usable = np.ones(len(log.user), np.bool_)
    if label.kind == "explicit" and label.min_value is not None:
        usable = log.value >= np.float32(label.min_value)  # NaN is never explicit
    elif label.kind == "explicit":
        usable = ~np.isnan(log.value)
    elif label.kind == "session":
        usable = log.session != NO_SESSION
    return np.flatnonzero(usable)


def _groups(log: TrainingLog, label: FacetLabel) -> Int64Array:
    """Pairs form inside a group: a user's history, or one session of one user."""
    user = log.user.astype(np.int64)
    if label.kind != "session":
        return user
    sessions = int(log.session.max(initial=0)) + 1
    return user * sessions + log.session


def _first_trigger(group: Int64Array, time: Int64Array, label: FacetLabel, reach: int) -> Int64Array:
    """For each position of the sorted history the first position that may be its trigger."""
    position = np.arange(len(group))
    _, start, inverse = np.unique(group, return_index=True, return_inverse=True)
    first = np.maximum(start[inverse], position - reach)
    if label.kind == "session" or not len(time):
        return first
    span = int(time.max() - time.min()) + 1
    window = min(label.window_s * 1000, span)
    if (int(inverse[-1]) + 1) * (2 * span) >= 1 << 63:
        raise ValueError(f"{int(inverse[-1]) + 1} users over {span} ms do not fit the index; train on a shorter span")
    key = inverse * (2 * span) + (time - time.min()) + span  # sorted: groups never overlap
    inside: Int64Array = np.maximum(first, np.searchsorted(key, key - window))
    return inside


def _category_bits(contents: Sequence[ItemContent]) -> npt.NDArray[np.uint64]:
    """(N, 16) bit sets of each item's categories."""
    known: dict[str, int] = {}
    bits = np.zeros((len(contents), _CATEGORY_WORDS), np.uint64)
    for row, content in enumerate(contents):
        for category in content.categories:
            number = known.setdefault(category, len(known)) % (64 * _CATEGORY_WORDS)
            bits[row, number // 64] |= np.uint64(1 << (number % 64))
    return bits
