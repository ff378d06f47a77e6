"""Index selection: a histogram of the leaves that triggers vote for, and K leaves chosen by it (digest section 2.8)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Votes:
    """n votes: ``trigger[i]`` votes for ``leaf[i]`` of ``facet[i]`` with ``weight[i]``; all (n,)."""

    facet: I64
    leaf: I64
    trigger: I64
    weight: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Selected:
    """K chosen leaves, heaviest first; those who voted for leaf i are ``voter[pointer[i]:pointer[i + 1]]``."""

    facet: I64
    leaf: I64
    weight: npt.NDArray[np.float64]
    pointer: I64
    voter: I64

    @property
    def voters(self) -> list[I64]:
        """For each leaf the triggers that voted for it."""
        return [self.voter[begin:end] for begin, end in pairwise(self.pointer.tolist())]


def select_leaves(votes: Votes, k: int, how: Literal["top", "multinomial"], seed: int | None) -> Selected:
    """Choose at most k leaves.

    Args:
        votes: of all triggers.
        k: K.
        how: ``top`` takes the K heaviest, ties by facet and leaf; ``multinomial`` draws K without replacement with
            probability by weight (Gumbel top-K).
        seed: of the draw; None draws anew each time.
    """
    slots, slot_of = np.unique(np.stack([votes.facet, votes.leaf], 1), axis=0, return_inverse=True)
    weight = np.bincount(slot_of, votes.weight, len(slots)).astype(np.float64)
    order_by = weight.astype(np.float64)
    if how == "multinomial":
        gumbel = np.random.default_rng(seed).gumbel(size=len(slots))
        order_by = np.log(np.maximum(weight, 1e-300)) + gumbel
    chosen = np.argsort(-order_by, kind="stable")[:k]
    chosen = chosen[np.argsort(-weight[chosen], kind="stable")]
    voters = [np.unique(votes.trigger[slot_of == slot]) for slot in chosen.tolist()]
    pointer = np.concatenate([[0], np.cumsum([len(each) for each in voters])]).astype(np.int64)
    voter = np.concatenate([np.empty(0, np.int64), *voters])
    return Selected(slots[chosen, 0], slots[chosen, 1], weight[chosen], pointer, voter)
