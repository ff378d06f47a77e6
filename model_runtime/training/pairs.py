"""(trigger, candidate) pairs with soft weights: two items that one user engaged with, the trigger first.

A heavy user's history of h engagements holds h^2 / 2 pairs, so pairs are never listed: for each engagement its possible
triggers are a range of earlier positions in the history, and drawing is drawing an engagement and some positions. Each
candidate comes with several triggers, whose weights add up to one: which of them led to it is not decided here
(:func:`model_runtime.training.losses.soft_weights` does, by what the model has learned so far).
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
_WORDS: Final = 16  # 1,024 values of a field are told apart; further ones share bits


@dataclass(frozen=True, slots=True)
class Pairs:
    """n drawn candidates with T triggers each.

    Attributes:
        trigger: (n, T) int32 item rows.
        weight: (n, T) float32, at least 0, summing to 1 for each candidate; 0 where a draw was unsuitable.
        candidate: (n,) int32 item rows, never equal to a trigger of weight above 0.
        time: (n,) int64, when the candidate was engaged, epoch milliseconds.
    """

    trigger: Int32Array
    weight: npt.NDArray[np.float32]
    candidate: Int32Array
    time: Int64Array

    def __len__(self) -> int:
        return len(self.candidate)


class PairSampler:
    """Draws pairs for one facet's label.

    Args:
        log: the training span with what came before it.
        label: what makes a pair (:class:`schemas.artifact.FacetLabel`).
        reach: how many engagements back a trigger may lie, at most.
        recency: a trigger weighs half as much for so many engagements between it and the candidate; None: never.
        from_ms: candidates are engagements from this moment on; triggers may be earlier.

    Attributes:
        positions: how many engagements have at least one possible trigger.
    """

    def __init__(
        self, log: TrainingLog, label: FacetLabel, reach: int, recency: float | None = None, from_ms: int = 0
    ) -> None:
        self._recency = np.inf if recency is None else recency
        kept = _usable(log, label)
        group = _groups(log, label)[kept]
        order = np.lexsort((log.time[kept], group))
        kept = kept[order]
        self._item, self._time = log.item[kept], log.time[kept]
        first, end = _range_of_triggers(group[order], self._time, log.session[kept], label, reach)
        position = np.flatnonzero((first < end) & (self._time >= from_ms))
        self._position = position[np.argsort(self._time[position], kind="stable")]
        self._first, self._end = first[self._position], end[self._position]
        self._when = self._time[self._position]
        self._fields = _field_bits(log.contents, label.field) if label.kind == "content" else None
        self.positions = len(self._position)

    def draw(self, count: int, triggers: int, span_ms: tuple[int, int], rng: np.random.Generator) -> Pairs:
        """About ``count`` candidates: engagements uniformly, then triggers uniformly; unsuitable draws are dropped.

        Args:
            count: candidates wanted.
            triggers: T, drawn for each, with repetition.
            span_ms: candidates were engaged within, end exclusive.
            rng: draws.
        """
        begin, stop = np.searchsorted(self._when, span_ms).tolist()
        if begin == stop:
            count, stop = 0, begin + 1
        chosen = rng.integers(begin, stop, count)
        at, first, end = self._position[chosen], self._first[chosen, None], self._end[chosen, None]
        candidate = self._item[at]
        tries = _TRIES if self._fields is not None else 1
        drawn = first + (rng.random((tries, count, triggers)) * (end - first)).astype(np.int64)
        trigger = self._item[drawn]
        suits = trigger != candidate[:, None]
        if self._fields is not None:
            suits &= (self._fields[trigger] & self._fields[candidate][:, None]).any(axis=-1)
        pick = suits.argmax(axis=0)[None]  # the first try that suits
        trigger, suits, drawn = (np.take_along_axis(all_, pick, 0)[0] for all_ in (trigger, suits, drawn))
        weight = suits * 0.5 ** ((at[:, None] - drawn - 1) / self._recency)
        kept = np.flatnonzero(suits.any(axis=1))
        weight = weight[kept] / weight[kept].sum(axis=1, keepdims=True)
        return Pairs(trigger[kept], weight.astype(np.float32), candidate[kept], self._time[at[kept]])


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


def _range_of_triggers(
    group: Int64Array, time: Int64Array, session: Int32Array, label: FacetLabel, reach: int
) -> tuple[Int64Array, Int64Array]:
    """For each position of the sorted history the first that may be its trigger, and the one after the last."""
    position = np.arange(len(group))
    _, start, inverse = np.unique(group, return_index=True, return_inverse=True)
    end = position
    if label.kind == "later":
        # Without a session an engagement is one of its own.
        begins = (np.diff(group, prepend=-1) != 0) | (np.diff(session, prepend=NO_SESSION) != 0)
        end = np.maximum.accumulate(np.where(begins | (session == NO_SESSION), position, 0))
    first = np.maximum(start[inverse], end - reach)
    if label.kind == "session" or not len(time):
        return first, end
    span = int(time.max() - time.min()) + 1
    window = min(label.window_s * 1000, span)
    if (int(inverse[-1]) + 1) * (2 * span) >= 1 << 63:
        raise ValueError(f"{int(inverse[-1]) + 1} users over {span} ms do not fit the index; train on a shorter span")
    key = inverse * (2 * span) + (time - time.min()) + span  # sorted: groups never overlap
    return np.maximum(first, np.searchsorted(key, key - window)), end


def _field_bits(contents: Sequence[ItemContent], field: str) -> npt.NDArray[np.uint64]:
    """(N, 16) bit sets of each item's values of a field."""
    known: dict[str, int] = {}
    bits = np.zeros((len(contents), _WORDS), np.uint64)
    for row, content in enumerate(contents):
        for value in _values(content, field):
            number = known.setdefault(value, len(known)) % (64 * _WORDS)
            bits[row, number // 64] |= np.uint64(1 << (number % 64))
    return bits


def _values(content: ItemContent, field: str) -> Sequence[str]:
    if field in {"categories", "tags"}:
        values: Sequence[str] = getattr(content, field)
        return values
    one = getattr(content, field) if field in {"creator_id", "language"} else content.attributes.get(field)
    return [one] if one else []
