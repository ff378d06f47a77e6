"""How well the codes of a set of items use their codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from model_runtime.codebook import Int32Array

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Usage:
    """How evenly n items spread over a number of places (codewords, or leaves).

    Attributes:
        places: how many there are.
        dead: how many hold nothing.
        perplexity: exp of the entropy, the number of places that even use would need.
        gini: 0 when all hold equally many, near 1 when one holds all.
        largest: share of the items in the fullest place.
    """

    places: int
    dead: int
    perplexity: float
    gini: float
    largest: float


@dataclass(frozen=True, slots=True)
class FacetUsage:
    """Usage of one facet, per layer and of its raw leaves."""

    layers: tuple[Usage, ...]
    leaves: Usage


@dataclass(frozen=True, slots=True)
class CodeReport:
    """Usage of all facets.

    Attributes:
        facets: one per facet.
        collisions: share of items whose codes in all facets together are those of another item too.
    """

    facets: tuple[FacetUsage, ...]
    collisions: float

    def metrics(self) -> dict[str, float]:
        """The figures under flat names, for a manifest."""
        figures = {"code_collisions": self.collisions}
        for number, facet in enumerate(self.facets):
            figures[f"facet{number}_leaf_perplexity"] = facet.leaves.perplexity
            figures[f"facet{number}_leaf_largest_share"] = facet.leaves.largest
            figures[f"facet{number}_leaf_gini"] = facet.leaves.gini
            for layer, usage in enumerate(facet.layers):
                figures[f"facet{number}_layer{layer}_perplexity"] = usage.perplexity
                figures[f"facet{number}_layer{layer}_dead"] = float(usage.dead)
        return figures


def usage_of(counts: npt.NDArray[np.integer]) -> Usage:
    """Usage from the number of items in each place: (k,) counts, k >= 1."""
    total = int(counts.sum())
    places = len(counts)
    if not total:
        return Usage(places, places, 0.0, 0.0, 0.0)
    share: Float64Array = np.sort(counts / total)
    some = share[share > 0]
    entropy = -float((some * np.log(some)).sum())
    weights = 2 * np.arange(1, places + 1) - places - 1
    return Usage(
        places=places,
        dead=int(np.count_nonzero(counts == 0)),
        perplexity=float(np.exp(entropy)),
        gini=float((weights * share).sum()) / places,
        largest=float(share[-1]),
    )


def code_report(codes: Int32Array, raw: npt.NDArray[np.uint32], codewords: int) -> CodeReport:
    """Usage of the codes of n items.

    Args:
        codes: (n, F, L) int32.
        raw: (n, F) uint32, their raw indices.
        codewords: M.
    """
    _, facets, layers = codes.shape
    usages = tuple(
        FacetUsage(
            layers=tuple(usage_of(np.bincount(codes[:, facet, layer], minlength=codewords)) for layer in range(layers)),
            leaves=usage_of(np.bincount(raw[:, facet], minlength=codewords**layers)),
        )
        for facet in range(facets)
    )
    _, alike = np.unique(raw, axis=0, return_counts=True)
    return CodeReport(usages, float(alike[alike > 1].sum()) / max(len(raw), 1))
