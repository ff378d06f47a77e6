"""The system under test: the whole pipeline over one or more bounded sources, timed phase by phase."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from benchmarks.apart import Answer, settle_heap
from indexer.index import Index
from indexer.rebalance.compactor import out_of_bounds
from indexer.verify import verify
from model_runtime.runtime import FrozenModel
from schemas.config import Config
from schemas.events import ITEM_EVENT, ItemContent
from streamer.generations import current_generation, load_model, open_index, store_meta
from streamer.pipeline import Pipeline, Progress
from streamer.reader import Span
from streamer.shards import open_sink, open_source


class Phase(TypedDict):
    """One run of the pipeline.

    Attributes:
        records: applied.
        applied_s: from the start of reading to the last record being retrievable.
        idle_s: from there until every leaf is within bounds or marked and everything is on disk.
        cpu_to_applied_s: processor seconds of the process until the last record was retrievable.
        largest: the largest leaf seen after any batch, in multiples of B_upp.
        codes_share: distinct raw indices of the items that are new in this phase, over all M ** L, mean of the facets.
    """

    records: int
    applied_s: float
    idle_s: float
    cpu_to_applied_s: float
    splits: int
    merges: int
    largest: float
    codes_share: float


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
    with open_index(configs[0], model) as index:
        answer["phases"] = [_run(config, model, index) for config in configs]
        answer["leaves"] = [len(facet.alive()) for facet in index.view.facets]
        answer["bounds"] = list(index.view.totals.bounds)
        answer["out_of_bounds"] = out_of_bounds(index.view)
        if check:
            answer["verify"] = verify_store(configs[0], model, index)
    return answer


def verify_store(config: Config, model: FrozenModel, index: Index) -> dict[str, Any]:
    """The verdict of ``facetstream verify`` on an open index."""
    meta = store_meta(model.manifest, index.view.meta.generation, config.counters.half_lives_s)

    def reencode(values: list[bytes]) -> npt.NDArray[np.uint32]:
        events = [ITEM_EVENT.validate_json(value) for value in values]
        return model.encode([event for event in events if isinstance(event, ItemContent)]).raw

    return verify(index.store, expected=meta, reencode=reencode).model_dump(mode="json")


def _run(config: Config, model: FrozenModel, index: Index) -> Phase:
    source, sink = open_source(config, follow=False), open_sink(config, current_generation(config.data_dir))
    largest = cpu_at = 0.0

    def look(_progress: Progress) -> None:
        nonlocal largest, cpu_at
        view = index.view
        # On the writer's own thread, which alone changes the view.
        cpu_at = time.process_time()
        largest = max(largest, *(facet.sizes().max(initial=0) / view.totals.bounds[1] for facet in view.facets))

    before = index.view.totals
    try:
        pipeline = Pipeline(index, source, sink, model, config, span=Span(to_end=True), on_progress=look)
        settle_heap()
        cpu, start = time.process_time(), time.monotonic()
        pipeline.run()
        end = time.monotonic()
    finally:
        sink.close()
        source.close()
    after, progress = index.view.totals, pipeline.progress
    return Phase(
        records=progress.records,
        applied_s=progress.applied_at - start,
        idle_s=end - progress.applied_at,
        cpu_to_applied_s=cpu_at - cpu,
        splits=after.splits - before.splits,
        merges=after.merges - before.merges,
        largest=round(float(largest), 3),
        codes_share=_codes_share(index, before.next_ordinal),
    )


def _codes_share(index: Index, first: int) -> float:
    raws = index.view.items["raw"][first:]
    used = [len(np.unique(raws[:, number])) / facet.raw_indices for number, facet in enumerate(index.view.facets)]
    return round(float(np.mean(used)), 5)
