"""A line of models: one to begin with, and newer ones that go on where it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from model_runtime.runtime import FrozenModel
from model_runtime.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_runtime.training.data import TrainingLog
    from schemas.training import TrainingConfig


class Learner(Protocol):
    """Where models come from."""

    def first(self, log: TrainingLog) -> FrozenModel:
        """The model at the start of the evaluated span; ``log`` is all that happened before it."""
        ...

    def next(self, log: TrainingLog, now_ms: int) -> FrozenModel | None:
        """A newer model at a refresh; ``log`` is all that happened before it. None: the old one stays."""
        ...


class Fixed:
    """One model that stays."""

    def __init__(self, model: FrozenModel) -> None:
        self._model = model

    def first(self, log: TrainingLog) -> FrozenModel:  # noqa: ARG002  # learned elsewhere
        """See :class:`Learner`."""
        return self._model

    def next(self, log: TrainingLog, now_ms: int) -> FrozenModel | None:  # noqa: ARG002
        """See :class:`Learner`."""
        return None


class Trained:
    """Models trained here.

    Args:
        config: of the first training and of refreshes.
        progress: told the steps of the first training.
    """

    def __init__(self, config: TrainingConfig, progress: Callable[[int], None] = lambda _: None) -> None:
        self._trainer = Trainer(config)
        self._progress = progress
        self._first: FrozenModel | None = None

    def first(self, log: TrainingLog) -> FrozenModel:
        """See :class:`Learner`; trained once, however often it is asked for."""
        if self._first is None:
            self._first = FrozenModel(self._trainer.fit(log, on_step=lambda _: self._progress(1)).artifact)
        return self._first

    def next(self, log: TrainingLog, now_ms: int) -> FrozenModel | None:
        """See :class:`Learner`."""
        return FrozenModel(self._trainer.refresh(log, now_ms).artifact)


class FirstOnly:
    """Another learner's first model, for good."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def first(self, log: TrainingLog) -> FrozenModel:
        """See :class:`Learner`."""
        return self._learner.first(log)

    def next(self, log: TrainingLog, now_ms: int) -> FrozenModel | None:  # noqa: ARG002
        """See :class:`Learner`."""
        return None
