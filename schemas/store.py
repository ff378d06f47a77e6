"""What a store says of itself: fixed facts (``StoreMeta``) and running totals (``Totals``)."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from schemas.prior import LearnedPrior

FORMAT_VERSION: Final = 2


class StoreMeta(BaseModel):
    """Fixed when the store is created; compared with the artifact and the configuration at every opening.

    Attributes:
        generation: name of the index version this store holds.
        half_lives_s: half-life of each decayed engagement count, seconds.
        prior: the model's own; None where it has none, then that of the configuration counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[2] = FORMAT_VERSION
    generation: str
    model_name: str
    model_version: str
    model_hash: str
    codebook_hash: str
    facets: int
    layers: int
    codewords: int
    dim: int
    half_lives_s: tuple[int, ...]
    prior: LearnedPrior | None = None
    created_at_ms: int

    @model_validator(mode="after")
    def _counts_what_the_prior_reads(self) -> Self:
        if self.prior is not None and max(self.prior.windows) >= len(self.half_lives_s):
            raise ValueError(f"the prior reads windows {self.prior.windows} of {len(self.half_lives_s)} half-lives")
        return self


class Totals(BaseModel):
    """Running totals, rewritten in every batch together with the data they count.

    Attributes:
        history: drawn when the store is made, and anew when it is restored: two stores with the same one number
            ordinals, leaves and labels alike.
        next_ordinal: ordinals below it are taken; an ordinal stays with its item id for ever.
        next_leaf: per facet, leaf ids below it are taken; a leaf id is never used again.
        journal_seq: entries written to the journal so far.
        stream_time_ms: largest occurred_at applied; pending engagements age by it.
        landmark: as of when the model's own prior was last computed for all items, epoch milliseconds; None: never.
        dead_letters: records set aside so far.
        dead_letter_position: where the dead-letter sink goes on: bytes of the file, or offset in the topic's partition;
            None: nothing was ever stored.
        items_stale: item events that came after a later one for the same item.
        engagements_duplicate: engagements whose event_id was seen before in the window of ``[dedupe]``.
        records_lost: records gone from the source before they were read.
        reset_from: partition name -> highest offset reached before an explicit reset; items may come from below it.
        kinds: engagement kinds in order of first appearance; position = the kind's column.
        sources: names of the partitions items came from; position = what an item record refers to.
        bounds: (B_low, B_upp) in force.
    """

    model_config = ConfigDict(extra="forbid")

    history: str = ""
    next_ordinal: int = 0
    next_leaf: list[int]
    journal_seq: int = 0
    stream_time_ms: int = 0
    landmark: int | None = None
    items_live: int = 0
    items_deleted: int = 0
    items_stale: int = 0
    engagements_applied: int = 0
    engagements_stale: int = 0
    engagements_duplicate: int = 0
    records_lost: int = 0
    reset_from: dict[str, int] = {}
    dead_letters: int = 0
    dead_letter_position: int | None = None
    splits: int = 0
    merges: int = 0
    kinds: list[str] = []
    sources: list[str] = []
    bounds: tuple[int, int] = (4, 64)
