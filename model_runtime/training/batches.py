"""One training step's data: pairs of every facet, the columns they are scored against, and what to encode for them.

A batch lies within one *cell*, a stretch of time that held so many engagements. Its columns are drawn from the items
alive in it: the most engaged of late with certainty (the head, where most of the softmax's mass is), the rest
uniformly. Counts, ages and who was alive are taken as of the cell's *moments*, of which each pair has the latest
before it: what a live index knows, a little late. A candidate that was not born by then is dropped: nothing is known
of it, and an importer that dates an item by its first engagement would teach that just-born items are always clicked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from model_runtime import prior
from model_runtime.training.counts import EngagementHistory
from model_runtime.training.pairs import Pairs, PairSampler

if TYPE_CHECKING:
    from model_runtime.training.data import Int64Array, TrainingLog
    from schemas.training import TrainingConfig

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

NO_COLUMN: Final = -1e9  # not infinite: a row without any column still has a gradient, zero


@dataclass(frozen=True, slots=True)
class FacetBatch:
    """The pairs of one facet.

    Attributes:
        trigger: (n, T) int64 position of each trigger among the batch's items.
        own_column: (n, T) int64 the trigger's own column, -1 where it is none.
        weight: (n, T) float32, as drawn.
        positive: (n,) int64 column of each candidate.
        moment: (n,) int64 which of the batch's moments is theirs.
    """

    trigger: Int64Array
    own_column: Int64Array
    weight: Float32Array
    positive: Int64Array
    moment: Int64Array


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything one step reads.

    Attributes:
        items: (m,) item rows to encode; the first C are the columns.
        columns: C.
        offset: (K, C) float32, what is added to a column's score as of each moment, its prior apart: -log of its
            chance to be drawn, and :data:`NO_COLUMN` where it was not drawn (a positive of some pair) or not alive.
        inputs: (K, C, W + 1) float32, what the prior sees.
        counts: (C,) float32 decayed count of each column over the longest half-life, as of the first moment.
        facets: one per facet.
    """

    items: Int64Array
    columns: int
    offset: Float32Array
    inputs: Float32Array
    counts: Float32Array
    facets: tuple[FacetBatch, ...]


@dataclass(frozen=True, slots=True)
class _Cell:
    """A stretch of time.

    Attributes:
        moments: (K + 1,) epoch milliseconds, the last one its end.
        head: rows of the items that every batch has as columns.
        rest: rows of all others that are alive.
    """

    moments: Int64Array
    head: Int64Array
    rest: Int64Array


class BatchSource:
    """Draws batches.

    Args:
        log: items and engagements.
        config: pairs, columns, moments, labels.
        from_ms: candidates are engaged from this moment on
        to_ms: to before this one; nothing at or after it is looked at.
        half_life_s: a cell is drawn half as often for each so much time between it and the end; None: all alike.

    Attributes:
        idle: names of the facets for which the span has no pair.
    """

    def __init__(
        self, log: TrainingLog, config: TrainingConfig, from_ms: int, to_ms: int, half_life_s: float | None = None
    ) -> None:
        self._config = config
        self._created_at = log.created_at
        half_lives = config.prior.half_lives_s
        begin, end = np.searchsorted(log.time, (from_ms, to_ms)).tolist()
        self._history = EngagementHistory(log.item[:end], log.time[:end], len(log.item_ids), half_lives)
        self._rates = 1 / np.array(half_lives, np.float64)
        active = log.of_users(log.user[begin:end], end)
        self._samplers = [
            PairSampler(active, label, config.reach, config.trigger_recency, from_ms) for label in config.labels
        ]
        self.idle = tuple(
            label.name for label, sampler in zip(config.labels, self._samplers, strict=True) if not sampler.positions
        )
        self._times = log.time[begin:end]
        self._cells: dict[int, _Cell] = {}
        self._count = max(1, len(self._times) // config.cell_engagements)
        self._chances = None if half_life_s is None else self._recency(half_life_s)

    def latest(self, items: Int64Array, before_ms: int) -> Int64Array:
        """(n,) when each item was last engaged with before a moment, or else created."""
        _, latest = self._history.at(items, np.array([before_ms]))
        known: Int64Array = np.maximum(latest[0], self._created_at[items])
        return known

    def draw(self, rng: np.random.Generator) -> Batch:
        """The next batch."""
        config = self._config
        cell = self._cell(self._number(rng))
        begin, end = int(cell.moments[0]), int(cell.moments[-1])
        drawn = [
            self._born(sampler.draw(config.pairs, config.triggers, (begin, end), rng), cell)
            for sampler in self._samplers
        ]
        negatives = min(config.negatives, len(cell.rest))
        sampled = rng.choice(cell.rest, negatives, replace=False) if negatives else cell.rest[:0]
        columns = np.concatenate([cell.head, sampled])
        positives = np.unique(np.concatenate([pairs.candidate for pairs, _ in drawn]))
        columns = np.concatenate([columns, np.setdiff1d(positives, columns)]).astype(np.int64)
        triggers = np.unique(np.concatenate([pairs.trigger.ravel() for pairs, _ in drawn]))
        items = np.concatenate([columns, np.setdiff1d(triggers, columns)]).astype(np.int64)

        moments = cell.moments[:-1]
        counts, latest = self._history.at(columns, moments)
        created_at = self._created_at[columns]
        alive = created_at <= moments[:, None]
        if config.alive_s is not None:
            alive &= np.maximum(latest, created_at) >= moments[:, None] - config.alive_s * 1_000
        log_weight = np.full(len(columns), NO_COLUMN)
        log_weight[: len(cell.head)] = 0
        log_weight[len(cell.head) : len(cell.head) + negatives] = np.log(max(len(cell.rest), 1) / max(negatives, 1))
        inputs = prior.inputs(counts, (moments[:, None] - created_at) / 1_000)

        row_of = _numbering(items, len(self._created_at))
        facets = []
        for pairs, moment in drawn:
            trigger = row_of[pairs.trigger]
            own = np.where(trigger < len(columns), trigger, -1)
            facets.append(FacetBatch(trigger, own, pairs.weight, row_of[pairs.candidate], moment))
        return Batch(
            items=items,
            columns=len(columns),
            offset=np.where(alive, log_weight, NO_COLUMN).astype(np.float32),
            inputs=inputs.astype(np.float32),
            counts=counts[0, :, -1].astype(np.float32),
            facets=tuple(facets),
        )

    def _born(self, pairs: Pairs, cell: _Cell) -> tuple[Pairs, Int64Array]:
        """The pairs whose candidate was there at the moment before, and that moment's number: (n,)."""
        moment = np.searchsorted(cell.moments[:-1], pairs.time, side="right") - 1
        born = np.flatnonzero(self._created_at[pairs.candidate] <= cell.moments[moment])
        kept = Pairs(pairs.trigger[born], pairs.weight[born], pairs.candidate[born], pairs.time[born])
        return kept, moment[born]

    def _number(self, rng: np.random.Generator) -> int:
        """Of the cell of the next batch."""
        if self._chances is None:
            return int(rng.integers(self._count))
        return min(int(np.searchsorted(self._chances, rng.random(), side="right")), self._count - 1)

    def _recency(self, half_life_s: float) -> Float64Array:
        """(cells,) ascending to 1, the chance that the next cell is this one or an earlier one."""
        if not len(self._times):
            return np.ones(1)
        last = np.linspace(0, len(self._times), self._count + 1).astype(np.int64)[1:] - 1
        age_s = (self._times[-1] - self._times[last]) / 1_000
        chances = np.cumsum(0.5 ** (age_s / half_life_s))
        return np.asarray(chances / chances[-1], np.float64)

    def _cell(self, number: int) -> _Cell:
        if number not in self._cells:
            self._cells[number] = self._make_cell(number)
        return self._cells[number]

    def _make_cell(self, number: int) -> _Cell:
        config = self._config
        bounds = np.linspace(0, len(self._times), self._count * config.moments + 1).astype(np.int64)
        at = bounds[number * config.moments : (number + 1) * config.moments + 1]
        moments = np.append(self._times[at[:-1]], self._times[at[-1] - 1] + 1)
        born = np.flatnonzero(self._created_at <= moments[-2])
        counts, latest = self._history.at(born, moments[[0, -1]])
        if config.alive_s is not None:
            alive = np.maximum(latest[1], self._created_at[born]) >= moments[0] - config.alive_s * 1_000
            born, counts = born[alive], counts[:, alive]
        busiest = np.argsort(-(counts[0] @ self._rates), kind="stable")
        return _Cell(moments, born[busiest[: config.head]], born[np.sort(busiest[config.head :])])


def _numbering(items: Int64Array, total: int) -> Int64Array:
    numbers = np.full(total, -1, np.int64)
    numbers[items] = np.arange(len(items))
    return numbers
