"""What an item is worth whoever asks, at one moment: for lists, for reranking, and for the index alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from streamer.evaluation.system import F32, F64, I64, News, top

if TYPE_CHECKING:
    from model_runtime.prior import Prior as LearnedG
    from model_runtime.runtime import FrozenModel
    from schemas.config import RetrievalConfig
    from streamer.evaluation.past import Past


class Prior(Protocol):
    """A popularity and freshness prior g, in units of similarity."""

    def score(self, counts: F64, age_s: F64) -> F64:
        """(n,) g of items with decayed counts (n, W) and ages (n,)."""
        ...


class ConfiguredPrior:
    """The index's own: log(1 + decayed engagements of one window) and 2 ** (-age / half-life), weighted.

    Args:
        config: weights, window and half-life.
    """

    def __init__(self, config: RetrievalConfig) -> None:
        self._config = config

    def score(self, counts: F64, age_s: F64) -> F64:
        """See :class:`Prior`."""
        config = self._config
        fresh = np.exp2(-np.maximum(age_s, 0) / config.freshness_half_life_s)
        return np.asarray(
            config.engagement_weight * np.log1p(counts[:, config.decay]) + config.freshness_weight * fresh
        )


class LearnedPrior:
    """The model's own, learned with its embeddings.

    Args:
        prior: g in units of similarity / temperature.
        half_lives_s: of the decayed counts at hand.
    """

    def __init__(self, prior: LearnedG, half_lives_s: tuple[int, ...]) -> None:
        self._prior = prior
        self._windows = list(prior.windows(half_lives_s))

    def score(self, counts: F64, age_s: F64) -> F64:
        """See :class:`Prior`."""
        g = self._prior.score(counts[:, self._windows], age_s)
        return np.asarray(self._prior.temperature * g, np.float64)


class Gains(Protocol):
    """What items are worth, to be added to similarities.

    Attributes:
        scores: (N,) float32, -inf outside the pool.
    """

    @property
    def scores(self) -> F32:
        """See above."""
        ...


class Lighter:
    """The same with less weight.

    Args:
        worth: what weighs 1.
        weight: 0 leaves similarity alone.
    """

    def __init__(self, worth: Worth, weight: float) -> None:
        self._worth = worth
        self._weight = np.float32(weight)

    @property
    def scores(self) -> F32:
        """See :class:`Gains`."""
        scores = self._worth.scores
        known = np.isfinite(scores)
        return np.where(known, self._weight * np.where(known, scores, 0), np.float32(-np.inf))


class Worth:
    """What every item of the pool is worth as of the last news.

    Args:
        past: counts and ages.
        configured: the prior where the model has none.
        model: in use.
    """

    def __init__(self, past: Past, configured: RetrievalConfig, model: FrozenModel) -> None:
        self._past = past
        self._configured = configured
        self._scores: F32 = np.empty(0, np.float32)
        self._best: I64 = np.empty(0, np.int64)
        self.refresh(model)

    def follow(self, news: News) -> None:  # noqa: ARG002  # the past has taken it up
        """See :class:`streamer.evaluation.system.Follower`."""
        self._at = -1

    def refresh(self, model: FrozenModel) -> None:
        """See :class:`streamer.evaluation.system.Follower`."""
        self._at = -1
        self._prior: Prior = ConfiguredPrior(self._configured)
        if model.prior is not None:
            self._prior = LearnedPrior(model.prior, self._past.half_lives_s)

    @property
    def scores(self) -> F32:
        """(N,) float32 g, -inf outside the pool."""
        if self._at != self._past.now_ms:
            self._at = self._past.now_ms
            live = np.flatnonzero(self._past.live)
            self._scores = np.full(len(self._past.live), -np.inf, np.float32)
            self._scores[live] = self._prior.score(self._past.decayed()[live], self._past.age_s()[live])
            self._best = np.empty(0, np.int64)
        return self._scores

    def best(self, k: int) -> I64:
        """The rows of the k greatest."""
        scores = self.scores
        if len(self._best) < min(k, int(self._past.live.sum())):
            self._best = top(scores, k)
        return self._best[:k]
