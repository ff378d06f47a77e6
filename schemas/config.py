"""Configuration: flag > environment (``FACETSTREAM_SECTION__KEY``) > file (TOML) > default.

Every key is documented here; ``facetstream config show`` prints the effective value of each and where it comes from.
Unknown keys are errors, so that a typing mistake cannot pass for a setting.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

HalfLife = Annotated[int, Field(ge=1, le=10 * 366 * 86_400)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(_Section):
    """Where events come from."""

    kind: Literal["kafka", "eventlog"] = Field(
        default="kafka", description="kafka: topics of a broker; eventlog: a directory of JSON lines"
    )
    path: Path | None = Field(default=None, description="event log directory, when kind is eventlog")
    max_poll_records: int = Field(default=4_096, ge=1, le=100_000, description="records taken from the source at once")
    align_wait_s: float = Field(
        default=0.0,
        ge=0,
        description="how long a partition that is ahead in event time waits for one that lags without records at hand; "
        "0: until it gives them, or engagements would be taken for too early while a leader is away",
    )


class KafkaConfig(_Section):
    """The broker and the topics."""

    bootstrap_servers: str = Field(default="127.0.0.1:9092", description="host:port, comma separated")
    items_topic: str = Field(default="items", description="item.created, item.updated, item.deleted; key = item_id")
    engagements_topic: str = Field(default="engagements", description="engagement events; key = item_id")
    dead_letters_topic: str = Field(
        default="facetstream-deadletters", description="where records go that cannot be applied"
    )
    group_id: str = Field(
        default="facetstream", description="consumer group: shares the shards out, and shows offsets to lag tools"
    )
    membership: Literal["group", "all"] = Field(
        default="group",
        description="group: the consumer group decides which shards this process owns; all: it owns every shard",
    )
    group_instance_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=249,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="static member of the group; unset: an id that is kept in the data directory",
    )
    session_timeout_s: float = Field(
        default=30.0, ge=1, le=1_800, description="a member that is silent for this long loses its shards"
    )
    on_gap: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="records removed from a topic before they were read: refuse to go on, or count them and go on",
    )
    client_id: str = Field(default="facetstream", description="name shown in broker logs")
    request_timeout_s: float = Field(default=30.0, gt=0, description="give up on a broker request after this long")
    connect_timeout_s: float = Field(default=10.0, gt=0, description="give up on the first connection after this long")
    fetch_max_bytes: int = Field(
        default=16 << 20, ge=1 << 16, description="upper bound of one fetch, bytes: bounds memory"
    )
    gather_ms: int = Field(
        default=20,
        ge=0,
        le=1_000,
        description="while more than 1,000 records a second come, the broker gathers them for this long: fewer, larger "
        "batches; 0: never",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="how to talk to the broker"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        default=None, description="with SASL_*"
    )
    sasl_username: str | None = Field(default=None, description="with SASL_*, unless OAUTHBEARER")
    sasl_password: SecretStr | None = Field(
        default=None, description="with SASL_*; give it by environment, it is never printed"
    )
    sasl_password_file: Path | None = Field(
        default=None, description="file that holds the password, instead of sasl_password"
    )
    sasl_token_provider: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="with OAUTHBEARER: module:callable that returns a token",
    )
    ssl_cafile: Path | None = Field(default=None, description="certificate authorities, PEM")
    ssl_certfile: Path | None = Field(default=None, description="our own certificate, PEM, where the broker wants one")
    ssl_keyfile: Path | None = Field(default=None, description="its private key, PEM")
    ssl_key_password: SecretStr | None = Field(
        default=None, description="of the private key; give it by environment, it is never printed"
    )


class ModelConfig(_Section):
    """The model artifact."""

    path: Path = Field(default=Path("model"), description="artifact directory")
    follow: Path | None = Field(
        default=None,
        description="directory of artifacts NAME-0001, NAME-0002, ... (`facetstream trainer` writes one): the daemon "
        "refreshes the index with each that is newer; then path is only what the first generation begins with",
    )
    device: str = Field(default="cpu", description="torch device for encoding: cpu or cuda")
    threads: int = Field(
        default=1,
        ge=0,
        description="torch threads; 0 leaves torch's default. More than one pays only where cores are idle",
    )


class LimitsConfig(_Section):
    """What a record may be."""

    max_record_bytes: int = Field(default=1 << 20, ge=256, description="longer records are dead letters")
    max_future_s: int = Field(
        default=86_400, ge=0, description="occurred_at further ahead of this machine's clock is a dead letter"
    )
    max_kinds: int = Field(
        default=32,
        ge=1,
        le=255,
        description="distinct engagement kinds counted apart; further ones count as 'other'",
    )


class PendingConfig(_Section):
    """Engagements that arrive before their item."""

    max_age_s: int = Field(default=7 * 86_400, ge=1, description="in event time; older ones are dead letters")
    max_count: int = Field(default=200_000, ge=0, description="above this the oldest are dead letters")


class DedupeConfig(_Section):
    """Engagements sent twice, told by their ``event_id``."""

    enabled: bool = Field(default=False, description="drop an engagement whose event_id was seen in the window")
    window_s: int = Field(default=86_400, ge=1, description="how long an event_id is remembered, in event time")
    max_count: int = Field(default=1_000_000, ge=1, description="event_ids remembered at most; bounds memory")


class CheckpointConfig(_Section):
    """Copies of the shards, from which another process can go on."""

    url: str | None = Field(
        default=None,
        description="directory or fsspec URL (s3://, ...) that all processes share; unset: in the data directory",
    )
    interval_s: float = Field(default=0.0, ge=0, description="the daemon takes one of each shard this often; 0: never")
    keep: int = Field(default=3, ge=1, description="checkpoints kept of each shard")


class SnapshotConfig(_Section):
    """Publications of the index that other processes and machines answer from."""

    enabled: bool = Field(default=False, description="the daemon publishes snapshots of the shards it serves")
    url: str | None = Field(
        default=None, description="directory or fsspec URL (s3://, ...) to publish to; unset: in the data directory"
    )
    delta_s: float = Field(default=1.0, gt=0, le=3_600, description="what changed is published this often")
    full_s: float = Field(default=900.0, gt=0, description="a full snapshot is published this often")
    full_after_share: float = Field(
        default=0.2,
        gt=0,
        description="and when rebalancing moved more than this share of all postings, or this share of items changed",
    )
    keep: int = Field(default=2, ge=1, description="full snapshots kept of each shard, with their deltas")


class WriterConfig(_Section):
    """The writer loop."""

    batch_records: int = Field(default=4_096, ge=1, le=100_000, description="most records in one atomic write")
    queue_batches: int = Field(
        default=4,
        ge=1,
        le=64,
        description="decoded batches waiting for the writer; the source is paused when full",
    )
    group_commit_ms: int = Field(
        default=200,
        ge=1,
        le=10_000,
        description="the write-ahead log is synced to disk this often; Kafka commits follow",
    )
    shutdown_s: float = Field(default=20.0, gt=0, description="deadline of a graceful stop")


class CountersConfig(_Section):
    """Engagement counters with exponential time decay."""

    half_lives_s: tuple[HalfLife, ...] = Field(
        default=(3_600, 21_600, 86_400, 604_800),
        min_length=1,
        max_length=16,
        description="one decayed count for each, ascending; fixed when a store is created",
    )

    @field_validator("half_lives_s")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in pairwise(value)):
            raise ValueError("half-lives must ascend, each longer than the one before")
        return value


class RebalanceConfig(_Section):
    """Sizes of posting lists."""

    enabled: bool = Field(default=True, description="rebalance in the background of the daemon")
    low: int | None = Field(default=None, ge=1, description="B_low; unset: derived from the number of live items")
    high: int | None = Field(
        default=None,
        ge=2,
        description="B_upp; unset: the power of two from 2 sqrt(live items) up, at least 64, B_low a sixteenth of it",
    )
    fill: float = Field(default=0.7, gt=0.1, lt=1, description="a split aims at children of this share of B_upp")
    interval_ms: int = Field(default=200, ge=1, description="pause between rounds when there is nothing to do")
    round_items: int = Field(
        default=20_000, ge=1, description="members moved in one round at most, unless a single leaf holds more"
    )
    round_ms: int = Field(default=500, ge=1, description="a round ends once the writer has spent this long on it")
    step_items: int = Field(
        default=4_096, ge=1, description="members moved in one write at most, unless a new leaf alone holds more"
    )
    plan_threads: int = Field(default=1, ge=1, le=64, description="threads that compute splits")
    query_weight: float = Field(
        default=1.0, ge=0, description="the leaf that is read most is split as if it were larger by this share"
    )
    reassign: bool = Field(
        default=False, description="after a split, move members near its borders to nearer leaves of their raw index"
    )
    merge_interval_s: float = Field(
        default=5.0, ge=0, description="how often the background looks for leaves to merge while events keep coming"
    )
    backpressure: float = Field(
        default=5.0,
        gt=1,
        description="ingestion waits while a splittable leaf holds more than this many times B_upp",
    )
    seed: int = Field(default=0, description="of the k-means")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("set both rebalance.low and rebalance.high, or neither")
        if self.low is not None and self.high is not None and self.high < 2 * self.low:
            raise ValueError(
                "rebalance.high must be at least twice rebalance.low, or a split would make leaves that are too small"
            )
        return self


class RetrievalConfig(_Section):
    """How a request is answered; flags of ``query`` override."""

    k: int = Field(default=100, ge=1, le=100_000, description="results")
    indices: int = Field(default=12, ge=1, le=10_000, description="K, leaves chosen from the triggers' histogram")
    selection: Literal["top", "multinomial"] = Field(
        default="top", description="top-K of the histogram, or K drawn by it without replacement"
    )
    scan: int = Field(default=512, ge=1, description="S, members scored in each leaf at most, the first in its order")
    order_creation: float = Field(
        default=1.0,
        ge=0,
        description="posting lists are ordered by decayed engagements (see decay), creation counting like this many",
    )
    order_slack: float = Field(
        default=0.125,
        ge=0,
        le=1,
        description="share of a leaf that may come (read first) or be engaged before it is sorted again; 0: at once",
    )
    probes: int = Field(default=2, ge=0, description="neighbour leaves of each trigger that vote with half a vote")
    adapt_probes: bool = Field(
        default=False,
        description="with few triggers, more neighbour leaves vote: as many as it takes to read about K leaves",
    )
    hot_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the results given to the items of greatest impact whoever asks (4096 at most); 0: none",
    )
    vote_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the results given to the chosen leaves by their votes; the rest go to the best of all",
    )
    per_trigger: int | None = Field(
        default=None,
        ge=1,
        description="results at most that one trigger gives in one facet, so that none takes all; needs vote_share 0",
    )
    similarity_weight: float = Field(
        default=1.0, ge=0, description="weight of the similarity to the triggers that voted for the leaf"
    )
    prior_weight: float = Field(
        default=1.0, ge=0, description="weight of the model's own prior; where it has one, it takes the place of ..."
    )
    engagement_weight: float = Field(default=0.05, ge=0, description="... this weight of log(1 + decayed engagements)")
    freshness_weight: float = Field(
        default=0.0, ge=0, description="... and this one of 2^(-age / freshness_half_life_s)"
    )
    freshness_half_life_s: int = Field(default=21_600, ge=1, description="half-life of the freshness prior")
    decay: int = Field(
        default=-1, ge=-1, le=15, description="which of counters.half_lives_s the prior reads; -1 the longest"
    )

    @model_validator(mode="after")
    def _one_way_to_share(self) -> Self:
        if self.per_trigger is not None and self.vote_share:
            raise ValueError("retrieval.per_trigger bounds what a trigger gives; set retrieval.vote_share to 0 with it")
        return self


class HttpConfig(_Section):
    """The daemon's HTTP surface."""

    host: str = Field(
        default="127.0.0.1", description="address to listen on; keep it on loopback unless a proxy guards it"
    )
    port: int = Field(
        default=9464,
        ge=0,
        le=65_535,
        description="0 picks a free port; the daemon logs it and writes it to daemon.json",
    )
    live_after_s: float = Field(
        default=30.0, gt=0, description="/livez fails when the writer loop has not turned for this long"
    )
    progress_after_s: float = Field(
        default=30.0, gt=0, description="a shard that lags is called stuck when no offset moved for this long"
    )


class LogConfig(_Section):
    """Logs, always on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe level printed"
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else JSON"
    )


class Config(BaseModel):
    """All settings of one process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: Path = Field(default=Path("facetstream-data"), description="holds the store and what belongs to it")
    source: SourceConfig = SourceConfig()
    kafka: KafkaConfig = KafkaConfig()
    model: ModelConfig = ModelConfig()
    limits: LimitsConfig = LimitsConfig()
    pending: PendingConfig = PendingConfig()
    dedupe: DedupeConfig = DedupeConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    snapshots: SnapshotConfig = SnapshotConfig()
    writer: WriterConfig = WriterConfig()
    counters: CountersConfig = CountersConfig()
    rebalance: RebalanceConfig = RebalanceConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _decay_exists(self) -> Self:
        if self.retrieval.decay >= len(self.counters.half_lives_s):
            raise ValueError(
                f"retrieval.decay is {self.retrieval.decay}, but counters.half_lives_s has only "
                f"{len(self.counters.half_lives_s)}, counted from 0"
            )
        return self
