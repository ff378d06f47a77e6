"""What a refresh did: how far the codes and embeddings of the same items moved from one model to the next."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class FacetDrift(BaseModel):
    """One facet.

    Attributes:
        changed: share of the items whose code is another; None where codes of the two models are not alike in shape.
        similarity: mean cosine of each item's old and new embedding; None where their lengths differ.
        similarity_low: its 5th percentile, over several shards the lowest of theirs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    changed: float | None = None
    similarity: float | None = None
    similarity_low: float | None = None


class Refreshed(BaseModel):
    """How a store was made of another one's items, by encoding them anew. Kept in the store.

    Attributes:
        before: model hash of the store that the items came from; before_version: version of that model.
        items: live items encoded.
        seconds: what encoding, filing and rebalancing took.
        at_ms: when, epoch milliseconds.
        facets: drift of each facet; empty where the models have not as many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: str
    before_version: str
    items: int
    seconds: float
    at_ms: int
    facets: tuple[FacetDrift, ...] = ()


def merged(shards: Sequence[Refreshed]) -> Refreshed | None:
    """What was done to all shards of a generation, items counting alike; None where nothing was."""
    if not shards:
        return None
    first = shards[0]
    weights = [each.items for each in shards]
    alike = all(len(each.facets) == len(first.facets) for each in shards)
    return first.model_copy(
        update={
            "items": sum(weights),
            "seconds": sum(each.seconds for each in shards),
            "at_ms": max(each.at_ms for each in shards),
            "facets": tuple(
                FacetDrift(
                    changed=_mean([each.facets[number].changed for each in shards], weights),
                    similarity=_mean([each.facets[number].similarity for each in shards], weights),
                    similarity_low=min(
                        (low for each in shards if (low := each.facets[number].similarity_low) is not None),
                        default=None,
                    ),
                )
                for number in range(len(first.facets) if alike else 0)
            ),
        }
    )


def _mean(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None and weight]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
