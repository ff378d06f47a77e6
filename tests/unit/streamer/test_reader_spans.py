"""Which part of a source is read, and what of it the index has already."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import orjson
import pytest

from model_runtime.runtime import FrozenModel
from schemas.config import Config
from schemas.errors import UsageError
from streamer.dead_letters import NoDeadLetters
from streamer.generations import open_index
from streamer.pipeline import Pipeline
from streamer.reader import Span
from streamer.sources.base import Partition
from tests.builders import tiny_model
from tests.scripted_source import ENGAGEMENTS, ITEMS, Scripted, ScriptedSource


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_model()


def item(offset: int) -> Scripted:
    event = {"type": "item.created", "item_id": f"i{offset}", "occurred_at": offset, "title": "word"}
    return Scripted(offset, orjson.dumps(event))


def records(gap: range = range(0)) -> dict[Partition, list[Scripted]]:
    return {ITEMS: [item(offset) for offset in range(100) if offset not in gap], ENGAGEMENTS: []}


class Run:
    """A pipeline over a span of a scripted source, on a data directory that stays."""

    def __init__(self, folder: Path, model: FrozenModel) -> None:
        settings = {"data_dir": folder, "writer": {"batch_records": 16}, "source": {"max_poll_records": 10}}
        self.config = Config.model_validate(settings)
        self.model = model

    def __call__(self, span: Span, source: ScriptedSource | None = None) -> tuple[int, int, Mapping[str, int]]:
        """(applied, repeated, offsets)."""
        with open_index(self.config, self.model) as index:
            pipeline = Pipeline(
                index, source or ScriptedSource(records()), NoDeadLetters(), self.model, self.config, span=span
            )
            pipeline.run()
            return pipeline.progress.records, pipeline.reader.repeated, dict(index.view.positions)


@pytest.fixture
def run(tmp_path: Path, model: FrozenModel) -> Run:
    return Run(tmp_path, model)


def test_a_span_is_read_and_no_more(run: Run) -> None:
    assert run(Span({ITEMS: 0}, {ITEMS: 30})) == (30, 0, {"items-0": 30})
    assert run(Span({ITEMS: 10}, {ITEMS: 55})) == (25, 20, {"items-0": 55})
    assert run(Span({ITEMS: 0}, {ITEMS: 55})) == (0, 55, {"items-0": 55})
    assert run(Span({}, {ITEMS: 40})) == (0, 0, {"items-0": 55})
    assert run(Span(to_end=True)) == (45, 0, {"items-0": 100})
    assert run(Span({ITEMS: 0}, to_end=True)) == (0, 100, {"items-0": 100})


def test_a_start_that_would_leave_records_out_is_refused(run: Run) -> None:
    run(Span({}, {ITEMS: 30}))
    with pytest.raises(UsageError, match="the store stands at 30 of items-0; starting at 31 would leave out 1 records"):
        run(Span({ITEMS: 31}, {ITEMS: 60}))
    assert run(Span({ITEMS: 30}, {ITEMS: 60}))[0] == 30


def test_a_new_index_may_begin_anywhere(run: Run) -> None:
    assert run(Span({ITEMS: 70}, {ITEMS: 90})) == (20, 0, {"items-0": 90})


def test_a_stop_in_a_gap_is_reached(run: Run) -> None:
    source = ScriptedSource(records(gap=range(20, 60)))
    assert run(Span({}, {ITEMS: 40}), source) == (20, 0, {"items-0": 40})
    source = ScriptedSource(records(gap=range(20, 60)))
    assert run(Span({ITEMS: 0}, {ITEMS: 61}), source) == (1, 20, {"items-0": 61})


def test_a_rate_is_kept(run: Run) -> None:
    began = time.monotonic()
    assert run(Span(to_end=True, rate=200))[0] == 100
    assert time.monotonic() - began >= 0.4
