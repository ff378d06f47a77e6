"""One training step's data: pairs of every facet, the columns they are scored against, and what to encode for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from model_runtime.training.losses import log_inclusion
from model_runtime.training.pairs import PairSampler
from schemas.errors import UsageError

if TYPE_CHECKING:
    from model_runtime.training.data import Int64Array, TrainingLog
    from schemas.training import TrainingConfig


@dataclass(frozen=True, slots=True)
class FacetBatch:
    """The pairs of one facet.

    Attributes:
        trigger: (n,) int64 position of each trigger among the batch's items.
        positive: (n,) int64 column of each candidate.
        blocked: (n, C) bool, columns that could not have been the answer.
    """

    trigger: torch.Tensor
    positive: torch.Tensor
    blocked: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything one step reads.

    Attributes:
        items: (m,) distinct item rows to encode.
        columns: (C,) int64 positions of the candidate columns among ``items``.
        log_pi: (C,) float32 log inclusion probability of each column.
        facets: one per facet.
    """

    items: Int64Array
    columns: torch.Tensor
    log_pi: torch.Tensor
    facets: tuple[FacetBatch, ...]


class BatchSource:
    """Draws batches.

    Args:
        log: the training span.
        config: pairs, negatives, reach, labels.

    Raises:
        UsageError: a facet's label matches no pair at all.
    """

    def __init__(self, log: TrainingLog, config: TrainingConfig) -> None:
        self._created_at = log.created_at
        self._pairs = config.pairs
        self._negatives = min(config.negatives, len(log.item_ids))
        self._samplers = [PairSampler(log, label, config.reach) for label in config.labels]
        for label, sampler in zip(config.labels, self._samplers, strict=True):
            if not sampler.positions:
                raise UsageError(
                    f"facet {label.name!r} ({label.kind}) finds no pair of items in {len(log.user)} engagements; "
                    "change its label, or train on a longer span"
                )
        self._frequencies = np.stack([sampler.frequency for sampler in self._samplers])

    def draw(self, rng: np.random.Generator) -> Batch:
        """The next batch."""
        drawn = [sampler.draw(self._pairs, rng) for sampler in self._samplers]
        items = len(self._created_at)
        uniform = rng.choice(items, self._negatives, replace=False)
        columns = np.unique(np.concatenate([uniform, *(pairs.candidate for pairs in drawn)]))
        encoded = np.unique(np.concatenate([columns, *(pairs.trigger for pairs in drawn)]))
        draws = np.array([len(pairs) for pairs in drawn])
        log_pi = log_inclusion(self._frequencies, draws, self._negatives / items)
        created_at = self._created_at[columns]
        facets = []
        for pairs in drawn:
            positive = np.searchsorted(columns, pairs.candidate)
            blocked = (columns == pairs.trigger[:, None]) | (created_at > pairs.time[:, None])
            blocked[np.arange(len(pairs)), positive] = False
            trigger = np.searchsorted(encoded, pairs.trigger)
            facets.append(FacetBatch(torch.from_numpy(trigger), torch.from_numpy(positive), torch.from_numpy(blocked)))
        return Batch(
            items=encoded.astype(np.int64),
            columns=torch.from_numpy(np.searchsorted(encoded, columns)),
            log_pi=torch.from_numpy(log_pi[columns]),
            facets=tuple(facets),
        )
