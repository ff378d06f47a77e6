"""Sampled softmax with a prior, and residual quantisation with straight-through gradients.

The correction
--------------
A trigger u of a candidate p should find it among all items alive at the moment: the softmax over
s_j = u . e_j / tau + g_j, g being the prior as of then. Its normaliser Z is estimated on the columns of a batch: the
head is there with certainty, the rest are n drawn uniformly of N, so

    Z^ = exp(s_p) + sum over head exp(s_j) + N / n * sum over drawn exp(s_j),   j != p

has expectation Z: a drawn column's logit gets +log(N / n), the positive and the head nothing. Subtracting the textbook
log q instead, with each item one column however often a batch names it, would punish popular items for duplicates that
are not there; and dividing their popularity out is wrong besides, as it is the prior's to learn. Positives of other
pairs are no columns unless drawn. The trigger itself is none either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch.nn import functional

_NEVER: Final = -1e9


def soft_weights(similarity: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    """How much each trigger of a candidate counts: (n, T), rows sum to 1, no gradient.

    The triggers that are more like the candidate by what is known so far take more of the pair (a soft search over the
    history), so that a candidate need not be drawn towards everything its user saw.

    Args:
        similarity: (n, T) of trigger and candidate.
        weight: (n, T) as drawn; what is 0 stays 0.
        temperature: the lower, the more the best trigger takes; infinite leaves the weights as they were drawn.
    """
    return torch.softmax(similarity.detach() / temperature + weight.log(), -1)


def sampled_softmax(
    scores: torch.Tensor, own: torch.Tensor, positive: torch.Tensor, own_column: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Mean over candidates of the weighted -log softmax of their triggers, with the correction above.

    Args:
        scores: (n, T, C) of all columns, correction and prior included, very low for what is no column.
        own: (n, T) of the positive, without correction.
        positive: (n,) int64 column of each candidate; it counts once, as ``own``.
        own_column: (n, T) int64 column of the trigger, -1 where it is none.
        weight: (n, T).
    """
    number = torch.arange(scores.shape[2], device=scores.device)
    out = (number == own_column[:, :, None]) | (number == positive[:, None, None])
    others = torch.logsumexp(scores.masked_fill(out, _NEVER), -1)
    return (weight * functional.softplus(others - own)).sum() / len(scores)


def quantise(
    vectors: torch.Tensor, codewords: torch.Tensor, layers: int, choose: Callable[[int, torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Residual quantisation of one facet by its first layers.

    Args:
        vectors: (n, d); assignment sends no gradient here.
        codewords: (L, M, d).
        layers: how many layers take part, at least one.
        choose: layer and (n, M) squared distances -> (n,) int64 codes.

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
        code = choose(layer, distance.detach())
        picked = book.index_select(0, code)  # indexing would add gradients in the order threads arrive
        residual = residual - picked.detach()
        total = total + picked
        codes.append(code)
        distances.append(distance)
    return total, torch.stack(codes, 1), torch.stack(distances, 1)


def straight_through(vectors: torch.Tensor, quantised: torch.Tensor, share: float = 1.0) -> torch.Tensor:
    """The quantised value, with its gradient to the codewords and ``share`` of it to the encoder: (n, d)."""
    return quantised + share * (vectors - vectors.detach())


def anchor(vectors: torch.Tensor, quantised: torch.Tensor, commitment: float) -> torch.Tensor:
    """Keeps codewords at their members, and weakly members at their codewords.

    Codewords are chosen by distance but trained by softmax; without this they drift away from what is
    assigned to them.
    """
    pull_codewords = (vectors.detach() - quantised).square().sum(-1).mean()
    pull_vectors = (vectors - quantised.detach()).square().sum(-1).mean()
    return pull_codewords + commitment * pull_vectors
