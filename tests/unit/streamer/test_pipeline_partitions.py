"""What a broker may do to the pipeline: silence, gaps, markers, tombstones, floods."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import orjson
import pytest

from indexer.keys import ItemState
from indexer.verify import verify
from model_runtime.runtime import FrozenModel
from schemas.config import Config
from schemas.dead_letters import Reason
from streamer.dead_letters import FileDeadLetters, read_file
from streamer.generations import open_index
from streamer.pipeline import Pipeline
from streamer.reader import Span
from streamer.sources.base import Partition
from tests.builders import tiny_model
from tests.scripted_source import ENGAGEMENTS, ITEMS, Scripted, ScriptedSource

DEADLINE_S = 60


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_model()


def chosen(folder: Path, **sections: Any) -> Config:
    base: dict[str, Any] = {
        "data_dir": folder,
        "rebalance": {"low": 2, "high": 8, "interval_ms": 1},
        "source": {"align_wait_s": 60},
        "writer": {"batch_records": 16, "group_commit_ms": 1},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return Config.model_validate(base)


def item(offset: int, name: str, at: int, title: str = "word") -> Scripted:
    event = {"type": "item.created", "item_id": name, "occurred_at": at, "title": title}
    return Scripted(offset, orjson.dumps(event), name.encode(), at)


def click(offset: int, name: str, at: int) -> Scripted:
    event = {"type": "engagement", "item_id": name, "occurred_at": at, "user_id": "u", "kind": "click"}
    return Scripted(offset, orjson.dumps(event), name.encode(), at)


class Running:
    """A pipeline over a scripted source, on this thread to the end or followed on another."""

    def __init__(self, model: FrozenModel, config: Config, source: ScriptedSource) -> None:
        self.index = open_index(config, model)
        self.letters = config.data_dir / "letters.jsonl"
        self.sink = FileDeadLetters(self.letters)
        self.source = source
        self.told: list[Mapping[Partition, int]] = []
        self.make: Callable[[bool], Pipeline] = lambda to_end: Pipeline(
            self.index, source, self.sink, model, config, span=Span(to_end=to_end), on_durable=self.told.append
        )

    def to_end(self) -> Pipeline:
        pipeline = self.make(True)
        pipeline.run()
        return pipeline

    def follow_until(self, condition: Callable[[Pipeline], bool]) -> Pipeline:
        pipeline, tick = self.make(False), threading.Event()

        def watch() -> None:
            for _ in range(DEADLINE_S * 1_000):
                if condition(pipeline) or tick.wait(0.001):
                    break
            pipeline.stop()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            pipeline.run()
        finally:
            tick.set()
            watcher.join()
        assert condition(pipeline), "the condition never held"
        return pipeline

    def count(self, name: str) -> int:
        return int(self.index.view.items["counts"][self.index.view.ids.ordinal(name)].sum())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sink.close()
        reply = verify(self.index.store, allow_unbalanced=True)
        self.index.close()
        assert reply.ok, reply.violations


def test_gaps_and_markers_move_the_offset_without_records(model: FrozenModel, tmp_path: Path) -> None:
    source = ScriptedSource(
        {ITEMS: [item(5, "a", 10), item(9, "b", 20)], ENGAGEMENTS: [click(2, "a", 15)]},
        ends={ITEMS: 12, ENGAGEMENTS: 40},
    )
    with Running(model, chosen(tmp_path), source) as running:
        running.to_end()
        assert running.index.view.positions == {"items-0": 12, "engagements-0": 40}
        assert running.count("a") == 1


def test_a_partition_of_markers_alone_ends(model: FrozenModel, tmp_path: Path) -> None:
    source = ScriptedSource({ITEMS: [], ENGAGEMENTS: []}, ends={ITEMS: 3})
    with Running(model, chosen(tmp_path), source) as running:
        running.to_end()
        assert running.index.view.positions == {"items-0": 3}


def test_an_empty_source_ends_at_once(model: FrozenModel, tmp_path: Path) -> None:
    with Running(model, chosen(tmp_path), ScriptedSource({ITEMS: [], ENGAGEMENTS: []})) as running:
        pipeline = running.to_end()
        assert pipeline.reader.caught_up
        assert pipeline.progress.records == 0


def test_a_tombstone_deletes_at_its_records_time(model: FrozenModel, tmp_path: Path) -> None:
    source = ScriptedSource(
        {
            ITEMS: [
                item(0, "a", 10),
                item(1, "b", 10),
                item(2, "c", 90),
                Scripted(3, None, b"a", 50),
                Scripted(4, None, b"c", 50),  # older than the item: stale
                Scripted(5, None, None, 50),
                Scripted(6, None, b"never seen", 50),
            ],
            ENGAGEMENTS: [Scripted(0, None, b"a", 50)],
        }
    )
    with Running(model, chosen(tmp_path), source) as running:
        running.to_end()
        view = running.index.view
        state = {name: ItemState(int(view.items["state"][at])) for at, name in enumerate(view.ids)}
        assert state == {
            "a": ItemState.DELETED,
            "b": ItemState.LIVE,
            "c": ItemState.LIVE,
            "never seen": ItemState.DELETED,
        }
        assert view.totals.items_stale == 1
        letters = [(letter.topic, letter.offset, letter.reason) for letter in read_file(running.letters)]
        assert sorted(letters) == [("engagements", 0, Reason.INVALID), ("items", 5, Reason.KEY_MISMATCH)]


def test_engagements_wait_for_a_partition_that_lags(model: FrozenModel, tmp_path: Path) -> None:
    """Nothing of the engagements is applied before the items of their time are read, so that none has to wait."""
    source = ScriptedSource(
        {
            ITEMS: [item(row, f"i{row}", row * 10) for row in range(50)],
            ENGAGEMENTS: [click(row, f"i{row}", row * 10 + 5) for row in range(50)],
        }
    )
    with Running(model, chosen(tmp_path, pending={"max_count": 0}, source={"max_poll_records": 3}), source) as running:
        running.to_end()
        assert running.index.view.totals.engagements_applied == 50
        assert running.index.view.totals.dead_letters == 0


def test_a_partition_that_gives_nothing_holds_the_others_back_no_longer_than_configured(
    model: FrozenModel, tmp_path: Path
) -> None:
    source = ScriptedSource(
        {ITEMS: [item(row, f"i{row}", row) for row in range(30)], ENGAGEMENTS: [click(0, "i0", 1)]},
        silent={ENGAGEMENTS},
    )
    with Running(model, chosen(tmp_path, source={"align_wait_s": 0.05}), source) as running:
        running.follow_until(lambda pipeline: pipeline.progress.records == 30)
        assert running.index.view.totals.items_live == 30


def test_a_partition_that_ran_ahead_is_paused_and_resumed(model: FrozenModel, tmp_path: Path) -> None:
    source = ScriptedSource(
        {
            ITEMS: [item(row, f"i{row}", row) for row in range(300)],
            ENGAGEMENTS: [click(row, "i0", 100_000 + row) for row in range(300)],
        }
    )
    with Running(model, chosen(tmp_path, source={"max_poll_records": 4}), source) as running:
        running.to_end()
        assert source.pauses[0] == [ENGAGEMENTS]
        assert source.resumes[0] == [ENGAGEMENTS]
        assert running.count("i0") == 300


def test_the_source_is_told_only_what_is_durable_and_at_last_everything(model: FrozenModel, tmp_path: Path) -> None:
    source = ScriptedSource(
        {ITEMS: [item(row, f"i{row}", row) for row in range(200)], ENGAGEMENTS: [click(0, "i0", 500)]}
    )
    with Running(model, chosen(tmp_path), source) as running:
        running.to_end()
        assert running.told[-1] == {ITEMS: 200, ENGAGEMENTS: 1}
        told = [commit.get(ITEMS, 0) for commit in running.told]
        assert told == sorted(told)


@pytest.mark.parametrize("titles", ["one", "many"])
def test_a_flood_into_one_leaf_waits_for_its_split_and_never_for_ever(
    model: FrozenModel, tmp_path: Path, titles: str
) -> None:
    """Items that differ are split while ingestion waits; identical ones are marked and ingestion goes on."""
    source = ScriptedSource(
        {
            ITEMS: [item(row, f"i{row}", row, "word" if titles == "one" else f"word {row}") for row in range(2_000)],
            ENGAGEMENTS: [],
        }
    )
    config = chosen(tmp_path, rebalance={"low": 2, "high": 8, "backpressure": 1.1, "interval_ms": 1})
    with Running(model, config, source) as running:
        pipeline = running.to_end()
        assert running.index.view.totals.items_live == 2_000
        assert not pipeline.compactor.overloaded()
        reply = verify(running.index.store)
        assert reply.ok, reply.violations


def test_a_stop_in_a_flood_does_not_wait_for_splits(model: FrozenModel, tmp_path: Path) -> None:
    source = ScriptedSource(
        {ITEMS: [item(row, f"i{row}", row, f"word {row % 100}") for row in range(3_000)], ENGAGEMENTS: []}
    )
    config = chosen(tmp_path, rebalance={"low": 1, "high": 2, "backpressure": 1.1})
    with Running(model, config, source) as running:
        running.follow_until(lambda pipeline: pipeline.progress.records >= 500)


def test_kinds_beyond_the_limit_count_as_other(model: FrozenModel, tmp_path: Path) -> None:
    def engaged(offset: int, kind: str) -> Scripted:
        event = {"type": "engagement", "item_id": "a", "occurred_at": 20, "user_id": "u", "kind": kind}
        return Scripted(offset, orjson.dumps(event), b"a", 20)

    source = ScriptedSource(
        {ITEMS: [item(0, "a", 10)], ENGAGEMENTS: [engaged(row, f"kind{row % 5}") for row in range(20)]}
    )
    with Running(model, chosen(tmp_path, limits={"max_kinds": 3}), source) as running:
        running.to_end()
        totals = running.index.view.totals
        assert totals.kinds == ["kind0", "kind1", "other"]
        assert running.index.view.items["counts"][0].tolist() == [4, 4, 12]
