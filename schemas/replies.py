"""The JSON documents that commands print with ``--json``; keys may be added, never renamed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Reply(BaseModel):
    """Base of all replies."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Violation(Reply):
    """One broken invariant: ``I1`` to ``I7``, and what exactly is wrong."""

    invariant: Literal["I1", "I2", "I3", "I4", "I5", "I6", "I7"]
    detail: str


class VerifyChecked(Reply):
    """How much was looked at. ``reencoded`` items were encoded anew; ``awaiting`` leaves wait for the compactor."""

    items: int
    postings: int
    leaves: int
    routes: int
    reencoded: int = 0
    awaiting: int = 0


class VerifyReply(Reply):
    """``facetstream verify``. ``violations`` holds the first of each kind, ``violations_total`` counts all."""

    ok: bool
    checked: VerifyChecked
    violations: list[Violation]
    violations_total: int = 0
    notes: list[str] = []


class ItemCounts(Reply):
    """Items in the store; ``stale`` events came after a later one for the same item."""

    live: int
    deleted: int
    stale: int


class EngagementCounts(Reply):
    """Engagements: counted, waiting for their item, ignored."""

    applied: int
    pending: int
    stale: int
    duplicate: int = 0


class SizeQuantiles(Reply):
    """Members per leaf."""

    min: int
    p50: int
    p90: int
    p99: int
    max: int


class FacetStats(Reply):
    """One facet. ``within_bounds_share`` is over live leaves; ``raw_active_share`` over all M ** L raw indices."""

    facet: int
    leaves: int
    items: int
    bounds: tuple[int, int]
    size: SizeQuantiles
    within_bounds_share: float
    marked: int
    raw_active_share: float


class StatsReply(Reply):
    """``facetstream stats``, over the shards here. ``journal_last`` is the newest entry of the journals.

    ``duplicate`` engagements were dropped by their event_id; ``records_lost`` were removed from the topic before they
    were read. ``daemon`` is what a running daemon says of its progress, shard by shard.
    """

    generation: str
    model_hash: str
    codebook_hash: str
    items: ItemCounts
    engagements: EngagementCounts
    dead_letters: int
    offsets: dict[str, int]
    splits: int
    merges: int
    journal_last: dict[str, Any] | None
    facets: list[FacetStats]
    disk_bytes: int
    shards: list[int] = [0]
    records_lost: int = 0
    daemon: list[dict[str, Any]] | None = None


class ItemFacet(Reply):
    """Where an item is in one facet: its residual code, that code as one integer, and its leaf."""

    facet: int
    code: list[int]
    raw: int
    leaf: int | None


class SourceRef(Reply):
    """Where a record was read."""

    topic: str
    partition: int
    offset: int


class ItemReply(Reply):
    """``facetstream item``, which ``shard`` holds.

    ``decayed`` maps half-life in seconds to the decayed engagement count now.
    """

    item_id: str
    ordinal: int
    state: Literal["live", "deleted"]
    created_at: int
    occurred_at: int
    language: str | None = None
    categories: list[str] = []
    facets: list[ItemFacet]
    counters: dict[str, int]
    decayed: dict[str, float]
    last_engaged_at: int | None
    source: SourceRef
    shard: int = 0


class LeafMember(Reply):
    """One posting."""

    item_id: str
    ordinal: int


class LeafReply(Reply):
    """``facetstream leaf``."""

    facet: int
    leaf: int
    size: int
    state: str
    raw_indices: int
    items: list[LeafMember]
    shard: int = 0


class LeafRow(Reply):
    """One line of ``facetstream leaves``; leaf ids are a shard's own."""

    facet: int
    leaf: int
    size: int
    state: str
    shard: int = 0


class LeavesReply(Reply):
    """``facetstream leaves``: the largest first."""

    leaves: list[LeafRow]


class SelectedLeaf(Reply):
    """One leaf a request read, with its share of the triggers' votes in its shard."""

    facet: int
    leaf: int
    weight: float
    shard: int = 0


class QueryResult(Reply):
    """One candidate and the leaf it was found in; of the hot list, facet and leaf are -1."""

    item_id: str
    score: float
    facet: int
    leaf: int
    shard: int = 0


class QueryReply(Reply):
    """``facetstream query``. ``missing`` triggers are not in the index."""

    triggers: list[str]
    missing: list[str]
    indices: list[SelectedLeaf]
    results: list[QueryResult]
    scored: int
    elapsed_ms: float


class PartitionLag(Reply):
    """One partition: what the store has applied, where the source ends, and the difference in records."""

    partition: str
    stored: int
    end: int
    lag: int
    committed: int | None = None


class LagReply(Reply):
    """``facetstream lag``. ``daemon`` is what a running daemon says of its progress, shard by shard."""

    lag: int
    partitions: list[PartitionLag]
    daemon: list[dict[str, Any]] | None = None


class FreshnessQuantiles(Reply):
    """Milliseconds from taking a record from the source to its being retrievable."""

    p50: float
    p99: float


class DemoReply(Reply):
    """``facetstream demo``."""

    items: int
    engagements: int
    seconds: float
    items_per_second: float
    freshness_ms: FreshnessQuantiles
    splits: int
    merges: int
    verify_: VerifyReply = Field(serialization_alias="verify", validation_alias="verify")
    recall: dict[str, Any]
    training_seconds: float
