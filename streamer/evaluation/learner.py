"""A line of models: one to begin with, and newer ones that go on where it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from model_runtime.runtime import FrozenModel
from model_runtime.training.trainer import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_runtime.training.data import TrainingLog
    from schemas.training import TrainingConfig


class Learner(Protocol):
    """Where models come from."""

    def first(self, log: TrainingLog) -> FrozenModel:
        """The model at the start of the evaluated span, of everything before it."""
        ...

    def next(self, log: TrainingLog) -> FrozenModel | None:
        """A newer model, of everything before the moment of a refresh; None: the old one stays."""
        ...


class Fixed:
    """One model that stays."""

    def __init__(self, model: FrozenModel) -> None:
        self._model = model

    def first(self, log: TrainingLog) -> FrozenModel:  # noqa: ARG002  # learned elsewhere
        """See :class:`Learner`."""
        return self._model

    def next(self, log: TrainingLog) -> FrozenModel | None:  # noqa: ARG002
        """See :class:`Learner`."""
        return None


class Trained:
    """Models trained here.

    Args:
        config: of the first training.
        progress: told the steps made.
    """

    def __init__(self, config: TrainingConfig, progress: Callable[[int], None] = lambda _: None) -> None:
        self._config = config
        self._progress = progress
        self._first: FrozenModel | None = None

    def first(self, log: TrainingLog) -> FrozenModel:
        """See :class:`Learner`; trained once, however often it is asked for."""
        if self._first is None:
            self._first = FrozenModel(train(log, self._config, progress=self._progress).artifact)
        return self._first

    def next(self, log: TrainingLog) -> FrozenModel | None:  # noqa: ARG002
        """See :class:`Learner`."""
        return None
