"""The system under test: the whole pipeline over one or more bounded sources, timed phase by phase."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np
import numpy.typing as npt

from benchmarks.apart import Answer, settle_heap
from indexer.index import Index
from indexer.rebalance.compactor import out_of_bounds
from model_runtime.runtime import FrozenModel
from schemas.config import Config
from streamer.generations import current_generation, load_model, open_index
from streamer.opening import open_sink, open_source, shard_numbers
from streamer.pipeline import Pipeline, Progress
from streamer.reader import Span
from streamer.sources.base import Source
from streamer.verification import verify_shards

Index64 = npt.NDArray[np.int64]


class Phase(TypedDict):
    """One run of the pipeline.

    Attributes:
        records: applied.
        applied_s: from the start of reading to the last record being retrievable.
        idle_s: from there until every leaf is within bounds or marked and everything is on disk.
        cpu_to_applied_s: processor seconds of the process until the last record was retrievable.
        largest: the largest leaf seen after any batch, in multiples of B_upp.
        moved: members that rebalancing moved; writer_s: what it took of the writer until the last record was
            retrievable; longest_ms: the longest that it kept the writer at a time.
        leaves_applied, leaves_idle: leaves by size when the last record was retrievable, and at the end; see
            :data:`EDGES`.
        codes_share: distinct raw indices of the items that are new in this phase, over all M ** L, mean of the facets.
    """

    records: int
    applied_s: float
    idle_s: float
    cpu_to_applied_s: float
    splits: int
    merges: int
    largest: float
    moved: int
    writer_s: float
    longest_ms: float
    leaves_applied: list[int]
    leaves_idle: list[int]
    codes_share: float


EDGES: Final = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 3.0, 4.0, 5.0, np.inf)
"""Classes of leaves by size, in multiples of B_upp: above one edge, up to the next; B_low is 1/16."""


def settings(
    workdir: Path, log: Path | None, kafka: dict[str, Any] | None = None, **sections: dict[str, Any]
) -> dict[str, Any]:
    """A configuration as a JSON-able document: store and model below ``workdir``, events from ``log`` or Kafka."""
    source = {"kind": "kafka"} if log is None else {"kind": "eventlog", "path": str(log)}
    return {
        "data_dir": str(workdir / "data"),
        "model": {"path": str(workdir / "model"), "threads": 1},
        "source": source,
        "kafka": kafka or {},
        "http": {"port": 0},
        **sections,
    }


def ingest(*, phases: Sequence[dict[str, Any]], check: bool = False) -> Answer:
    """Run the pipeline over each phase's configuration to its source's end, on one store.

    Args:
        phases: configurations, as :func:`settings` makes them; all with the same store.
        check: verify the store at the end, untimed.

    Returns:
        ``phases``: a :class:`Phase` each; with ``check`` also ``verify``.
    """
    configs = [Config.model_validate(phase) for phase in phases]
    model = load_model(configs[0])
    answer: Answer = {}
    with ExitStack() as opened:
        indexes = {
            shard: opened.enter_context(open_index(configs[0], model, shard)) for shard in shard_numbers(configs[0])
        }
        answer["phases"] = [_run(config, model, indexes) for config in configs]
        views = [index.view for index in indexes.values()]
        answer["leaves"] = [sum(len(view.facets[at].alive()) for view in views) for at in range(len(views[0].facets))]
        answer["bounds"] = list(views[0].totals.bounds)
        answer["out_of_bounds"] = sum(map(out_of_bounds, views))
        if check:
            stores = {shard: index.store for shard, index in indexes.items()}
            answer["verify"] = verify_shards(stores, model).model_dump(mode="json")
    return answer


def _run(config: Config, model: FrozenModel, indexes: Mapping[int, Index]) -> Phase:
    """All shards at once, each on threads of its own, as the daemon runs them."""
    largest = cpu_at = writer_s = 0.0
    at_last: list[list[Index64]] = []

    def look(_progress: Progress) -> None:
        nonlocal largest, cpu_at, writer_s, at_last
        cpu_at = time.process_time()
        writer_s = sum(pipeline.progress.rebalancing_ms for pipeline in pipelines) / 1_000
        at_last = [[facet.sizes()[facet.alive()] for facet in index.view.facets] for index in indexes.values()]
        for index in indexes.values():
            high = index.view.totals.bounds[1]
            largest = max(largest, *(facet.sizes().max(initial=0) / high for facet in index.view.facets))

    before = {shard: index.view.totals for shard, index in indexes.items()}
    pipelines, errors = [], []
    with ExitStack() as opened:
        for shard, index in indexes.items():
            source = opened.enter_context(closing(open_source(config, follow=False, shard=shard)))
            _same_source(index, source)
            sink = open_sink(config, current_generation(config.data_dir), shard)
            pipelines.append(Pipeline(index, source, sink, model, config, span=Span(to_end=True), on_progress=look))

        def drive(pipeline: Pipeline) -> None:
            try:
                pipeline.run()
            except BaseException as error:  # noqa: BLE001  # raised below
                errors.append(error)

        threads = [threading.Thread(target=drive, args=(pipeline,)) for pipeline in pipelines]
        settle_heap()
        cpu, start = time.process_time(), time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        end = time.monotonic()
    if errors:
        raise errors[0]
    applied_at = max(pipeline.progress.applied_at for pipeline in pipelines)
    after = {shard: index.view.totals for shard, index in indexes.items()}
    return Phase(
        records=sum(pipeline.progress.records for pipeline in pipelines),
        applied_s=applied_at - start,
        idle_s=end - applied_at,
        cpu_to_applied_s=cpu_at - cpu,
        splits=sum(after[shard].splits - before[shard].splits for shard in indexes),
        merges=sum(after[shard].merges - before[shard].merges for shard in indexes),
        largest=round(float(largest), 3),
        moved=sum(pipeline.progress.moved for pipeline in pipelines),
        writer_s=writer_s,
        longest_ms=max(pipeline.progress.longest_change_ms for pipeline in pipelines),
        leaves_applied=_classes(indexes, at_last),
        leaves_idle=_classes(
            indexes, [[facet.sizes()[facet.alive()] for facet in index.view.facets] for index in indexes.values()]
        ),
        codes_share=float(np.mean([_codes_share(indexes[at], before[at].next_ordinal) for at in indexes])),
    )


def _same_source(index: Index, source: Source) -> None:
    """The phases may read the same items with other engagements; an index wants to be told."""
    told, stored = source.identity(), index.source()
    if any(stored.get(name, now) != now for name, now in told.items()):
        new = [str(partition) for partition in source.partitions() if str(partition) not in index.view.positions]
        index.reset(dict.fromkeys(new, 0), "the next phase", told)


def _classes(indexes: Mapping[int, Index], sizes: list[list[Index64]]) -> list[int]:
    """Leaves of all shards and facets in each class of :data:`EDGES`."""
    shares = [
        np.concatenate(of_facets) / index.view.totals.bounds[1]
        for index, of_facets in zip(indexes.values(), sizes, strict=True)
    ]
    classes: Index64 = np.maximum(1, np.searchsorted(EDGES, np.concatenate(shares)))
    counts: list[int] = np.bincount(classes, minlength=len(EDGES)).tolist()
    return counts[1:]


def _codes_share(index: Index, first: int) -> float:
    raws = index.view.items["raw"][first:]
    used = [len(np.unique(raws[:, number])) / facet.raw_indices for number, facet in enumerate(index.view.facets)]
    return round(float(np.mean(used)), 5)
