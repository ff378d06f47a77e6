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
    """Usage of one facet, per layer and of its raw leaves.

    Attributes:
        within: mean cosine of two items of one leaf.
        between: mean cosine of two items of different leaves.
    """

    layers: tuple[Usage, ...]
    leaves: Usage
    within: float
    between: float


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
            figures[f"facet{number}_leaf_dead"] = float(facet.leaves.dead)
            figures[f"facet{number}_within_leaf_similarity"] = facet.within
            figures[f"facet{number}_between_leaf_similarity"] = facet.between
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


def similarity_by_leaf(vectors: npt.NDArray[np.floating], leaf: npt.NDArray[np.integer]) -> tuple[float, float]:
    """Mean cosine over all pairs of items in one leaf, and over all pairs in different leaves; NaN without any.

    Args:
        vectors: (n, d) unit vectors.
        leaf: (n,) leaf of each.
    """
    _, number, sizes = np.unique(leaf, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), vectors.shape[1]))
    np.add.at(sums, number, vectors.astype(np.float64))
    own = float((vectors.astype(np.float64) ** 2).sum())
    inside, everything = float((sums**2).sum()), float((sums.sum(0) ** 2).sum())
    pairs_inside, pairs = int((sizes * (sizes - 1)).sum()), len(leaf) * (len(leaf) - 1)
    within = (inside - own) / pairs_inside if pairs_inside else float("nan")
    between = (everything - inside) / (pairs - pairs_inside) if pairs > pairs_inside else float("nan")
    return within, between


def code_report(
    codes: Int32Array, raw: npt.NDArray[np.uint32], vectors: npt.NDArray[np.floating], codewords: int
) -> CodeReport:
    """Usage of the codes of n items.

    Args:
        codes: (n, F, L) int32.
        raw: (n, F) uint32, their raw indices.
        vectors: (n, F, d) unit vectors.
        codewords: M.
    """
    _, facets, layers = codes.shape
    usages = []
    for facet in range(facets):
        by_layer = [usage_of(np.bincount(codes[:, facet, layer], minlength=codewords)) for layer in range(layers)]
        leaves = usage_of(np.bincount(raw[:, facet], minlength=codewords**layers))
        usages.append(FacetUsage(tuple(by_layer), leaves, *similarity_by_leaf(vectors[:, facet], raw[:, facet])))
    _, alike = np.unique(raw, axis=0, return_counts=True)
    return CodeReport(tuple(usages), float(alike[alike > 1].sum()) / max(len(raw), 1))
