"""Early stopping on a slice of time after everything learned from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from model_runtime.training.batches import BatchSource

if TYPE_CHECKING:
    from model_runtime.training.batches import Float32Array
    from model_runtime.training.data import TrainingLog
    from model_runtime.training.learning import Learning
    from schemas.training import TrainingConfig

_BATCHES: Final = 8


@dataclass(slots=True)
class Stopping:
    """What early stopping has seen so far; a checkpoint keeps it.

    Attributes:
        best: the lowest loss of a look.
        worse: looks since.
        parameters: as they were at the best look, by name, of the tables the rows in use; empty before it.
    """

    best: float = math.inf
    worse: int = 0
    parameters: dict[str, Float32Array] = field(default_factory=dict)


class Watch:
    """Looks at the loss on what is held back, always on the same batches, and remembers the best parameters.

    Args:
        log: items and engagements.
        config: how often, and how long without a better look.
        from_ms: the slice begins
        to_ms: and ends here.
        seen: what was seen before an interruption; changed by each look.
    """

    def __init__(self, log: TrainingLog, config: TrainingConfig, from_ms: int, to_ms: int, seen: Stopping) -> None:
        self._config = config
        source, rng = BatchSource(log, config, from_ms, to_ms), np.random.default_rng(config.seed)
        self._batches = [source.draw(rng) for _ in range(_BATCHES)]
        self._seen = seen

    def stop(self, learning: Learning, step: int, layers: int) -> bool:
        """Whether enough looks in a row were no better; if so the best parameters are back.

        Args:
            learning: what is trained.
            step: how many steps it has made.
            layers: how many take part. Losses with fewer are not comparable, and the rest have yet to start: until
                all do there is no look.
        """
        if layers < self._config.layers or step % self._config.validate_every:
            return False
        seen, loss = self._seen, learning.validate(self._batches, layers)
        if loss < seen.best:
            seen.best, seen.worse, seen.parameters = loss, 0, learning.snapshot()
            return False
        seen.worse += 1
        if seen.worse < self._config.patience:
            return False
        learning.restore(seen.parameters)
        return True
