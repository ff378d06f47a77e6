"""Sampled softmax on de-duplicated columns, and residual quantisation with straight-through gradients.

The correction
--------------
A step scores each trigger against a set of candidate columns: the distinct items among the batch's positives,
plus items drawn uniformly. What we want is the softmax over all items, whose normaliser is Z = sum_j
exp(s_j). An item is one column however often it was drawn, so the textbook -log q (for draws *with
repetition*) punishes popular items for duplicates that are not there. With pi_j = P(item j is a column) the
Horvitz-Thompson sum

    Z^ = exp(s_positive) + sum over the other columns j of exp(s_j) / pi_j

has expectation Z: logits of negatives get -log pi_j, the positive, which is a column with certainty, gets
nothing. For a rare item pi is about draws * q and the textbook is right up to a constant; for a popular one
pi is 1 and the correction vanishes. Since serving ranks by similarity without a prior, s must carry
popularity itself, which is what fitting the full softmax teaches; dividing it out would teach only what is
unusual about a pair.

Columns that could not have been the answer are blocked: the trigger itself, and items created after the
positive's moment (otherwise everything new is pushed away from everything older).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    import numpy.typing as npt


def log_inclusion(
    frequencies: npt.NDArray[np.float64], draws: npt.NDArray[np.int64], uniform_share: float
) -> npt.NDArray[np.float32]:
    """Log pi of every item: (N,) float32.

    Args:
        frequencies: (F, N) chance of each item to be the candidate of one draw, per facet.
        draws: (F,) pairs in the batch.
        uniform_share: chance of each item to be among the uniform draws (without repetition).
    """
    # An item that is drawn every time is never absent: log 0 is right there, and no cause for a warning.
    drew = draws > 0
    with np.errstate(divide="ignore"):
        absent = (draws[drew, None] * np.log1p(-frequencies[drew])).sum(0) + np.log1p(-uniform_share)
    included = np.log(np.maximum(-np.expm1(absent), np.finfo(np.float64).tiny))
    result: npt.NDArray[np.float32] = included.astype(np.float32)
    return result


def sampled_softmax(
    triggers: torch.Tensor,
    columns: torch.Tensor,
    positive: torch.Tensor,
    log_pi: torch.Tensor,
    blocked: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Mean of -log softmax of the positives, with the correction above.

    Args:
        triggers: (n, d).
        columns: (C, d) distinct candidates.
        positive: (n,) int64 column of each pair's candidate.
        log_pi: (C,) log inclusion probability of each column.
        blocked: (n, C) bool, columns that could not have been the answer; never the positive.
        temperature: similarities are divided by it.
    """
    logits = triggers @ columns.T / temperature - log_pi
    logits = logits.masked_fill(blocked, -torch.inf)
    own = (triggers * columns.index_select(0, positive)).sum(-1) / temperature
    logits = logits.scatter(1, positive[:, None], own[:, None])
    return functional.cross_entropy(logits, positive)


def quantise(
    vectors: torch.Tensor, codewords: torch.Tensor, layers: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Residual quantisation of one facet by its first layers.

    Args:
        vectors: (n, d); assignment sends no gradient here.
        codewords: (L, M, d).
        layers: how many layers take part.

    Returns:
        (n, d) sum of the picked codewords, with gradient to them; (n, layers) int64 codes; (n, layers, M)
        squared distances of the residuals to every codeword, with gradient to the codewords.
    """
    residual = vectors.detach()
    total = torch.zeros_like(residual)
    codes, distances = [], []
    for layer in range(layers):
        book = codewords[layer]
        distance = (residual * residual).sum(-1, keepdim=True) - 2 * residual @ book.T + (book * book).sum(-1)
        code = distance.detach().argmin(-1)
        picked = book.index_select(0, code)  # indexing would add gradients in the order threads arrive
        residual = residual - picked.detach()
        total = total + picked
        codes.append(code)
        distances.append(distance)
    return total, torch.stack(codes, 1), torch.stack(distances, 1)


def straight_through(vectors: torch.Tensor, quantised: torch.Tensor) -> torch.Tensor:
    """The quantised value, with its gradient to the codewords and, unchanged, to the encoder: (n, d)."""
    return quantised + (vectors - vectors.detach())


def anchor(vectors: torch.Tensor, quantised: torch.Tensor, commitment: float) -> torch.Tensor:
    """Keeps codewords at their members, and weakly members at their codewords.

    Codewords are chosen by distance but trained by softmax; without this they drift away from what is
    assigned to them.
    """
    pull_codewords = (vectors.detach() - quantised).square().sum(-1).mean()
    pull_vectors = (vectors - quantised.detach()).square().sum(-1).mean()
    return pull_codewords + commitment * pull_vectors
