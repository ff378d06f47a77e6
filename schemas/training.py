"""How a model is trained. The defaults suit MovieLens small: a few thousand items, long sittings, ratings."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.artifact import MAX_RAW_INDICES, FacetLabel, FeatureSpec

DEFAULT_LABELS = (
    FacetLabel(name="next", kind="next"),
    FacetLabel(name="liked", kind="explicit", min_value=4.0),
    FacetLabel(name="alike", kind="content"),
)


class TrainingConfig(BaseModel):
    """Shape of the model, and how it learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="facetstream", description="name of the model in its manifest")
    labels: tuple[FacetLabel, ...] = Field(
        default=DEFAULT_LABELS, min_length=1, max_length=32, description="one facet each: what makes two items a pair"
    )
    layers: int = Field(default=2, ge=1, le=8, description="L, residual layers of the codebook")
    codewords: int = Field(
        default=16,
        ge=2,
        le=65_535,
        description="M, codewords per layer; M ** L leaves should hold 20 to 200 items each",
    )
    dim: int = Field(default=64, ge=2, le=1_024, description="d, length of one facet embedding")
    token_dim: int = Field(default=64, ge=2, le=1_024, description="length of one row of the hashed token table")
    hidden: tuple[int, ...] = Field(default=(128,), description="widths of the MLP's hidden layers")
    features: FeatureSpec = Field(default=FeatureSpec(), description="how content becomes tokens")

    seed: int = Field(default=0, ge=0, description="of initial weights, drawn pairs, negatives and k-means")
    threads: int = Field(
        default=1,
        ge=0,
        description="torch threads, part of what decides the result; 0 leaves torch's default; more help only on idle "
        "cores, on busy ones their barriers cost many times what they save",
    )
    steps: int = Field(default=400, ge=1, description="optimiser steps")
    max_seconds: float = Field(
        default=600.0,
        gt=0,
        description="stop earlier when this much time has passed; the result then depends on the machine",
    )
    pairs: int = Field(default=512, ge=2, description="pairs drawn per facet and step")
    negatives: int = Field(default=512, ge=0, description="further candidates drawn uniformly per step")
    reach: int = Field(default=10, ge=1, description="a trigger lies at most so many engagements before its candidate")
    temperature: float = Field(default=0.15, gt=0, description="tau of the softmax")
    learning_rate: float = Field(default=3e-3, gt=0, description="of Adam for the encoder, decayed to zero by a cosine")
    codebook_learning_rate: float = Field(default=1e-3, gt=0, description="of Adam for the codewords")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled, on table and MLP")
    group_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="chance that a feature group of an item is left out of a step"
    )
    quantised_weight: float = Field(default=1.0, ge=0, description="weight of L_QMF beside L_MF")
    anchor_weight: float = Field(default=0.5, ge=0, description="weight of the distance between members and codewords")
    commitment: float = Field(
        default=0.25, ge=0, description="share of the anchor that pulls members instead of codewords"
    )
    start_share: float = Field(
        default=0.4, ge=0, lt=1, description="S_0: share of the steps before the first layer joins"
    )
    layer_share: float = Field(default=0.1, ge=0, lt=1, description="S_delta: share of the steps between layers")
    usage_weight: float = Field(default=0.1, ge=0, description="weight of the over-use penalty")
    usage_allowed: float = Field(default=2.0, gt=0, description="a codeword pays above so many times its fair share")
    usage_decay: float = Field(default=0.98, ge=0, lt=1, description="of the usage average, per step")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.codewords**self.layers > MAX_RAW_INDICES:
            raise ValueError(f"codewords ** layers exceeds {MAX_RAW_INDICES}; use fewer layers or codewords")
        if self.start_share + (self.layers - 1) * self.layer_share >= 1:
            raise ValueError("start_share and layer_share leave the last layer no steps; lower them")
        return self
