"""The manifest of a model artifact: ``manifest.json`` beside ``encoder.safetensors`` and ``codebook.safetensors``."""

from __future__ import annotations

import hashlib
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_RAW_INDICES: Final = 1 << 20


class FeatureSpec(BaseModel):
    """How content becomes features. Two artifacts with equal specs hash content alike.

    Attributes:
        buckets: rows of the hashed embedding table.
        char_ngrams: lengths of character n-grams taken inside each word of title and text.
        word_ngrams: lengths of word n-grams.
        max_text_chars: title and text are cut after this many characters each.
        dense_dim: length of the optional dense vector; 0 means items must not carry one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    buckets: int = Field(default=1 << 16, ge=1 << 8, le=1 << 24)
    char_ngrams: tuple[int, ...] = (3, 4)
    word_ngrams: tuple[int, ...] = (1, 2)
    max_text_chars: int = Field(default=2_000, ge=1)
    dense_dim: int = Field(default=0, ge=0, le=4_096)


class FacetLabel(BaseModel):
    """What makes two items a (trigger, candidate) pair for one facet: one user engaged with both, in this order.

    Attributes:
        kind: ``next`` (any such pair), ``session`` (of one session), ``later`` (of different sessions),
            ``explicit`` (both with ``value`` >= ``min_value``), ``content`` (both agree in ``field``).
        window_s: the trigger was engaged at most so long before; without meaning for ``session``.
        min_value: for ``explicit``; unset, any value counts.
        field: for ``content``: categories, tags, creator_id, language, or the name of an attribute.
        weight: w_f, the facet's weight in the loss.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["next", "session", "later", "explicit", "content"]
    window_s: int = Field(default=86_400, ge=1)
    min_value: float | None = None
    field: str = "categories"
    weight: float = Field(default=1.0, gt=0)


class PriorSpec(BaseModel):
    """The learned prior in ``prior.safetensors``.

    Attributes:
        half_lives_s: of the decayed counts it reads, ascending, seconds; an index must keep these counters.
        hidden: widths of its hidden layers.
        temperature: a result's score is similarity / temperature + g.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    half_lives_s: tuple[int, ...] = Field(min_length=1, max_length=16)
    hidden: tuple[int, ...] = ()
    temperature: float = Field(gt=0)


class TrainingWindow(BaseModel):
    """The span of events the artifact learned from, epoch milliseconds, end exclusive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_ms: int
    to_ms: int
    items: int
    engagements: int


class ArtifactManifest(BaseModel):
    """What ``manifest.json`` says; every file is named with its SHA-256.

    Attributes:
        facets: F, number of parallel quantisation channels.
        layers: L, residual layers.
        codewords: M, codewords per layer.
        dim: d, length of one facet embedding.
        hidden: widths of the MLP's hidden layers.
        ids: how many items have a vector of their own, found by their identifier, beside their content.
        table_exponent: token and id rows are 2 ** so many times those trained; a reader need not know.
        prior: None where none was trained.
        metrics: figures measured when the artifact was trained.
        files: file name -> SHA-256, hexadecimal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    name: str
    version: str
    facets: int = Field(ge=1, le=32)
    layers: int = Field(ge=1, le=8)
    codewords: int = Field(ge=2, le=65_535)
    dim: int = Field(ge=2, le=1_024)
    token_dim: int = Field(ge=2, le=1_024)
    hidden: tuple[int, ...] = ()
    ids: int = Field(default=0, ge=0)
    table_exponent: int = 0
    prior: PriorSpec | None = None
    features: FeatureSpec
    labels: tuple[FacetLabel, ...]
    window: TrainingWindow
    metrics: dict[str, float] = {}
    files: dict[str, str]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.labels) != self.facets:
            raise ValueError(f"{self.facets} facets need as many labels, not {len(self.labels)}")
        if self.raw_indices > MAX_RAW_INDICES:
            raise ValueError(
                f"codewords ** layers = {self.raw_indices} exceeds {MAX_RAW_INDICES}; use fewer layers or codewords"
            )
        return self

    @property
    def raw_indices(self) -> int:
        """Number of raw indices per facet, M ** L."""
        return int(self.codewords**self.layers)

    @property
    def model_hash(self) -> str:
        """Identity of the encoder with its feature spec: 16 hexadecimal digits."""
        seen = self.features.model_dump_json() + self.files["encoder.safetensors"]
        return hashlib.sha256(seen.encode()).hexdigest()[:16]

    @property
    def codebook_hash(self) -> str:
        """Identity of the codebook: 16 hexadecimal digits."""
        return self.files["codebook.safetensors"][:16]

    @property
    def prior_hash(self) -> str | None:
        """Identity of the prior, 16 hexadecimal digits; None where there is none. It decides no item's place."""
        return self.files["prior.safetensors"][:16] if self.prior is not None else None
