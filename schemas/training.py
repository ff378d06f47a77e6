"""How a model is trained. The defaults suit MovieLens small: a few thousand items, long sittings, ratings."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.artifact import MAX_RAW_INDICES, FacetLabel, FeatureSpec

DEFAULT_LABELS = (
    FacetLabel(name="next", kind="next"),
    FacetLabel(name="liked", kind="explicit", min_value=4.0),
    FacetLabel(name="alike", kind="content"),
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PriorConfig(_Section):
    """The learned prior g: similarity / temperature + g is what training fits and retrieval ranks by."""

    export: bool = Field(
        default=True, description="learn a prior and give it to the model; without, similarity carries popularity"
    )
    half_lives_s: tuple[int, ...] = Field(
        default=(3_600, 21_600, 86_400, 604_800),
        min_length=1,
        max_length=16,
        description="decayed counts it reads, ascending; the index must keep them (counters.half_lives_s)",
    )
    hidden: tuple[int, ...] = Field(default=(32,), description="widths of its hidden layers")
    learning_rate: float = Field(default=1e-2, gt=0, description="of Adam")


class OverUseConfig(_Section):
    """What holds back codewords that too many items choose."""

    kind: Literal["none", "penalty", "disturbance", "biased", "moving_average"] = Field(
        default="penalty",
        description="penalty: over-used codewords pay; disturbance: under-used ones look nearer; biased: distance "
        "grows with usage; moving_average: codewords follow their members, rare items counting more, no gradient",
    )
    weight: float = Field(default=0.1, ge=0, description="of the penalty, or of the bias")
    allowed: float = Field(
        default=2.0,
        gt=0,
        description="penalty: a codeword pays above so many times its fair share; disturbance: it looks nearer "
        "below 1 / so many times",
    )
    decay: float = Field(default=0.98, ge=0, lt=1, description="of the usage average, per step")
    revive_below: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="at the end of a fit or refresh a codeword below so much of its fair share is moved to where many "
        "items are, whatever the kind",
    )
    rarity: float = Field(
        default=0.5, ge=0, description="beta: an item counts (1 + its engagements) ** -beta in moving averages"
    )


class RefreshConfig(_Section):
    """Going on with the newest events (``train --continue``)."""

    steps: int = Field(default=15, ge=1, description="optimiser steps for each span; in all no more than a training's")
    span_s: int = Field(default=3_600, ge=1, description="learn from so much before the end, at least all that is new")
    look_back_s: int = Field(
        default=0,
        ge=0,
        description="learn also from so much before the end, so that items silent now keep their place among others",
    )
    half_life_s: float | None = Field(
        default=None, gt=0, description="what happened so long before the end is drawn half as often; unset: all alike"
    )
    rate: float = Field(default=0.5, gt=0, description="learning rates as a share of training's; not decayed")
    codebook_rate: float = Field(
        default=0.2, ge=0, description="the same for codewords: the slower they move, the fewer items change leaves"
    )


class TrainingConfig(_Section):
    """Shape of the model, and how it learns."""

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
    token_dim: int = Field(default=64, ge=2, le=1_024, description="length of one row of the token and id tables")
    hidden: tuple[int, ...] = Field(default=(128,), description="widths of the MLP's hidden layers")
    features: FeatureSpec = Field(default=FeatureSpec(), description="how content becomes tokens")
    max_ids: int = Field(
        default=1 << 17,
        ge=0,
        description="at most so many items have a vector of their own beside their content, the latest engaged; "
        "0: content is all",
    )

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
    pairs: int = Field(default=256, ge=2, description="candidates drawn per facet and step")
    triggers: int = Field(default=2, ge=1, le=64, description="triggers drawn for each candidate, sharing its weight")
    reach: int = Field(default=10, ge=1, description="a trigger lies at most so many engagements before its candidate")
    trigger_recency: float | None = Field(
        default=None,
        gt=0,
        description="a trigger weighs half for each so many engagements before the candidate; unset: all alike",
    )
    soft_temperature: float = Field(
        default=0.2, gt=0, description="the lower, the more of a pair its most similar trigger takes"
    )
    head: int = Field(default=128, ge=0, description="columns of every step: the most engaged items of late")
    negatives: int = Field(default=512, ge=0, description="further columns of a step, drawn uniformly of those alive")
    alive_s: int | None = Field(
        default=None, ge=1, description="items are candidates so long after their last engagement; unset: for ever"
    )
    cell_engagements: int = Field(
        default=2_048, ge=1, description="a step's pairs lie within a stretch of time with so many engagements"
    )
    moments: int = Field(
        default=8, ge=1, description="counts and ages are taken so many times within such a stretch; pairs use the last"
    )
    half_life_s: float | None = Field(
        default=None,
        gt=0,
        description="steps lie half as often in what happened so long before the end; unset: all alike",
    )
    temperature: float = Field(default=0.15, gt=0, description="tau of the softmax")
    prior: PriorConfig = PriorConfig()
    learning_rate: float = Field(default=3e-3, gt=0, description="of Adam for the encoder, decayed to zero by a cosine")
    codebook_learning_rate: float = Field(default=1e-3, gt=0, description="of Adam for the codewords")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled, on tables and MLP")
    group_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="chance that a feature group of an item is left out of a step"
    )
    id_dropout: float = Field(
        default=0.3, ge=0, le=1, description="chance that an item goes without its own vector in a step, as new ones do"
    )
    quantised_weight: float = Field(default=1.0, ge=0, description="weight of L_QMF beside L_MF")
    quantised_encoder_share: float = Field(
        default=1.0, ge=0, description="share of L_QMF's gradient that reaches the encoder, straight through"
    )
    anchor_weight: float = Field(default=0.5, ge=0, description="weight of the distance between members and codewords")
    commitment: float = Field(
        default=0.25, ge=0, description="share of the anchor that pulls members instead of codewords"
    )
    start_share: float = Field(
        default=0.4, ge=0, lt=1, description="S_0: share of the steps before the first layer joins"
    )
    layer_share: float = Field(default=0.1, ge=0, lt=1, description="S_delta: share of the steps between layers")
    over_use: OverUseConfig = OverUseConfig()

    validation_share: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="last share of the engagements that is held back, to stop early by, and learned from at the end",
    )
    validate_every: int = Field(default=50, ge=1, description="steps between looks at what is held back")
    patience: int = Field(default=3, ge=1, description="stop after so many looks without a better one")
    checkpoint_every: int = Field(default=200, ge=1, description="steps between checkpoints, where they are asked for")
    refresh: RefreshConfig = RefreshConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.codewords**self.layers > MAX_RAW_INDICES:
            raise ValueError(f"codewords ** layers exceeds {MAX_RAW_INDICES}; use fewer layers or codewords")
        if self.start_share + (self.layers - 1) * self.layer_share >= 1:
            raise ValueError("start_share and layer_share leave the last layer no steps; lower them")
        if not self.head + self.negatives:
            raise ValueError("head and negatives leave no columns to score against; raise one")
        return self
