"""How an evaluation is run: spans, pool, budgets, and which systems take part."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from schemas.config import Config, CountersConfig, RebalanceConfig, RetrievalConfig
from schemas.training import TrainingConfig


class EvaluationSettings(BaseModel):
    """Settings of ``facetstream evaluate --settings``, a TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="evaluation", description="of the data set, in the report")
    requests: int = Field(default=10_000, ge=1, description="a sample of at most so many")
    seeds: int = Field(default=3, ge=1, description="models are trained so many times; the requests are the same")
    pool_s: float | None = Field(
        default=None, gt=0, description="an item idle for so long leaves the pool until engaged again; unset: never"
    )
    tick_s: float = Field(default=60.0, gt=0, description="a request is asked with what was known when its tick began")
    refresh_s: float | None = Field(default=None, gt=0, description="a newer model so often; unset: never")
    rebalance_s: float = Field(default=300.0, gt=0, description="the index is rebalanced so often, in event time")
    counters: CountersConfig = CountersConfig()
    rebalance: RebalanceConfig = RebalanceConfig()
    retrieval: RetrievalConfig = RetrievalConfig(vote_share=0.0, scan=60)
    budgets: tuple[tuple[int, int, int], ...] = Field(
        default=((0, 15, 10), (1, 30, 10), (2, 45, 10), (4, 60, 10), (4, 60, 20), (8, 120, 20)),
        description="probes, leaves and members read in each: the curves of recall against items scored",
    )
    hybrid_prior: float = Field(
        default=0.5,
        ge=0,
        description="weight of the prior in the retrieved half of hybrids, whose other half is ranked by it alone",
    )
    fetches: tuple[float, ...] = Field(
        default=(1, 2, 4, 8), description="over-fetch of multi-ANN in the curves of recall against items scored"
    )
    selection_indices: int = Field(default=6, ge=1, description="K where ways to select leaves are compared")
    smoothing: float = Field(default=20.0, gt=0, description="of item-kNN")
    training: TrainingConfig = TrainingConfig()

    def config(self) -> Config:
        """What an index is opened with."""
        return Config(counters=self.counters, rebalance=self.rebalance, retrieval=self.retrieval)
