"""The whole path over an event log: the same end whatever happened on the way, and a clear stop."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.logical_state import differences
from indexer.store import store_path
from indexer.verify import verify
from model_runtime.runtime import FrozenModel
from schemas.config import Config
from schemas.dead_letters import DeadLetter, Reason
from schemas.errors import StoreError, UsageError
from streamer.dead_letters import FileDeadLetters, read_file
from streamer.generations import dead_letter_path, open_index, reencoder, store_meta
from streamer.pipeline import Pipeline, Progress
from streamer.reader import Span
from streamer.sources.eventlog import EventLogSource
from tests.builders import random_log, state_of, tiny_model, write_log

DEADLINE_S = 60


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_model()


def chosen(folder: Path, **sections: Any) -> Config:
    """Small batches and polls, no forced release however slow this machine is."""
    base: dict[str, Any] = {
        "data_dir": folder,
        "rebalance": {"low": 2, "high": 8, "interval_ms": 1, "merge_interval_s": 0},
        "source": {"kind": "eventlog", "align_wait_s": 60, "max_poll_records": 64},
        "writer": {"batch_records": 16, "group_commit_ms": 1},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return Config.model_validate(base)


class PowerCutError(Exception):
    """Stands for the moment at which a process dies."""


class DyingSink(FileDeadLetters):
    """Dies between making a dead letter durable and the batch it belongs to."""

    def __init__(self, path: Path, writes: int) -> None:
        super().__init__(path)
        self._left = writes

    def write(self, letters: Sequence[DeadLetter]) -> None:
        super().write(letters)
        self._left -= 1
        if self._left < 0:
            raise PowerCutError


def run(
    model: FrozenModel,
    config: Config,
    log: Path,
    *,
    stop_after: int | None = None,
    die_after: int | None = None,
    die_at_letter: int | None = None,
) -> bool:
    """To the log's end, unless stopped or dying before; whether the end was reached."""
    batches = 0

    def count(_: Progress) -> None:
        nonlocal batches
        batches += 1
        if batches == stop_after:
            pipeline.stop()
        if batches == die_after:
            raise PowerCutError

    source = EventLogSource(log)
    ends = {str(partition): end for partition, end in source.end_offsets().items()}
    letters = dead_letter_path(config.data_dir, "g000001")
    with open_index(config, model) as index:
        sink = FileDeadLetters(letters) if die_at_letter is None else DyingSink(letters, die_at_letter)
        pipeline = Pipeline(index, source, sink, model, config, span=Span(to_end=True), on_progress=count)
        try:
            pipeline.run()
        except PowerCutError:
            return False
        finally:
            sink.close()
            source.close()
        return index.view.positions == {name: end for name, end in ends.items() if end}


def check(model: FrozenModel, config: Config, *, strict: bool = True) -> None:
    with open_index(config, model) as index:
        meta = store_meta(model, "g000001", config.counters.half_lives_s)
        reply = verify(index.store, expected=meta, reencode=reencoder(model), allow_unbalanced=not strict)
        assert reply.ok, reply.violations


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    pending=st.sampled_from([{}, {"max_age_s": 200}, {"max_count": 2}, {"max_age_s": 500, "max_count": 5}]),
    sizes=st.tuples(st.integers(1, 50), st.integers(1, 200)),
    ends=st.lists(
        st.tuples(st.sampled_from(["stop_after", "die_after", "die_at_letter"]), st.integers(0, 12)), max_size=4
    ),
)
def test_a_run_that_is_stopped_killed_and_started_again_ends_like_an_undisturbed_one(
    model: FrozenModel,
    seed: int,
    pending: dict[str, int],
    sizes: tuple[int, int],
    ends: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = write_log(folder / "log", random_log(seed, 400))
        calm = chosen(folder / "calm", pending=pending)
        assert run(model, calm, log)
        rough = chosen(
            folder / "rough",
            pending=pending,
            writer={"batch_records": sizes[0], "queue_batches": 1},
            source={"max_poll_records": sizes[1]},
        )
        for end, count in ends:
            run(model, rough, log, **{end: count})
            check(model, rough, strict=False)
        assert run(model, rough, log)
        check(model, rough)
        check(model, calm)
        expected = state_of(calm.data_dir)
        assert not differences(expected, state_of(rough.data_dir))
        assert expected.totals["dead_letters"] == sum(expected.letters.values()) > 0


def test_running_again_changes_nothing(model: FrozenModel, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", random_log(1, 300))
    config = chosen(tmp_path / "data")
    assert run(model, config, log)
    before = state_of(config.data_dir)
    assert run(model, config, log)
    assert not differences(before, state_of(config.data_dir))


def test_what_is_appended_later_is_read_from_where_the_store_stands(model: FrozenModel, tmp_path: Path) -> None:
    lines = random_log(2, 300)
    log = write_log(tmp_path / "log", {name: rows[: len(rows) // 2] for name, rows in lines.items()})
    config = chosen(tmp_path / "data")
    assert run(model, config, log)
    write_log(log, lines)
    assert run(model, config, log)
    check(model, config)
    assert sum(state_of(config.data_dir).offsets.values()) == 300


def line(**event: Any) -> bytes:
    return orjson.dumps(event)


def item(name: str, at: int, title: str = "word") -> bytes:
    return line(type="item.created", item_id=name, occurred_at=at, title=title)


def click(name: str, at: int) -> bytes:
    return line(type="engagement", item_id=name, occurred_at=at, user_id="u", kind="click")


def test_the_first_dead_letters_are_written_once_even_when_their_batch_is_lost(
    model: FrozenModel, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log", {"items": [b"{", item("a", 1)], "engagements": []})
    config = chosen(tmp_path / "data")
    assert not run(model, config, log, die_at_letter=0)
    assert len(list(read_file(dead_letter_path(config.data_dir, "g000001")))) == 1
    assert run(model, config, log)
    assert [letter.reason for letter in read_file(dead_letter_path(config.data_dir, "g000001"))] == [Reason.UNPARSEABLE]


def test_dead_letters_of_another_index_in_the_same_file_stay(model: FrozenModel, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", {"items": [b"{"], "engagements": []})
    first = chosen(tmp_path / "data")
    assert run(model, first, log)
    store_path(tmp_path / "data", "g000001").rename(tmp_path / "away")  # a new index beside the old file
    assert run(model, first, log)
    assert len(list(read_file(dead_letter_path(tmp_path / "data", "g000001")))) == 2


def test_an_engagement_whose_item_never_comes_becomes_a_dead_letter(model: FrozenModel, tmp_path: Path) -> None:
    day = 86_400_000
    log = write_log(
        tmp_path / "log",
        {
            "items": [item("a", 0), item("late", 3 * day + 1), item("in time", 3 * day + 2), item("z", 9 * day)],
            "engagements": [click("late", 0), click("in time", 2 * day), click("never", day), click("a", 0)],
        },
    )
    config = chosen(tmp_path / "data", pending={"max_age_s": 3 * 86_400})
    assert run(model, config, log)
    found = state_of(config.data_dir)
    letters = sorted((letter.reason, letter.offset, (letter.key or b"").decode()) for letter in found.letters)
    assert letters == [(Reason.ITEM_NEVER_CAME, 0, "late"), (Reason.ITEM_NEVER_CAME, 2, "never")]
    assert found.items["in time"].counts == (("click", 1),)
    assert found.items["late"].counts == ()
    assert not found.pending
    assert found.totals["engagements_applied"] == 2


def test_more_waiting_engagements_than_allowed_become_dead_letters_the_oldest_first(
    model: FrozenModel, tmp_path: Path
) -> None:
    log = write_log(
        tmp_path / "log",
        {"items": [item("b", 50)], "engagements": [click(name, at) for at, name in enumerate("abcd", 1)]},
    )
    config = chosen(tmp_path / "data", pending={"max_count": 2})
    assert run(model, config, log)
    found = state_of(config.data_dir)
    assert {letter.value for letter in found.letters} == {click("a", 1), click("b", 2)}
    assert {letter.reason for letter in found.letters} == {Reason.PENDING_OVERFLOW}
    assert {name for name, _ in found.pending.values()} == {"c", "d"}
    assert found.items["b"].counts == ()


def test_a_graceful_stop_applies_what_was_read_and_syncs(model: FrozenModel, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", random_log(3, 500))
    config = chosen(tmp_path / "data", writer={"batch_records": 8})
    source = EventLogSource(log, follow=True)
    with open_index(config, model) as index:
        sink = FileDeadLetters(tmp_path / "letters.jsonl")
        caught_up = threading.Event()
        pipeline = Pipeline(index, source, sink, model, config)

        def stop_when_caught_up() -> None:
            deadline = time.monotonic() + DEADLINE_S
            while not pipeline.reader.caught_up and time.monotonic() < deadline:
                caught_up.wait(0.01)
            pipeline.stop()

        stopper = threading.Thread(target=stop_when_caught_up)
        stopper.start()
        pipeline.run()
        stopper.join()
        assert sum(index.view.positions.values()) == 500
        assert pipeline.progress.records == 500
        assert not any(thread.name in {"reader", "compactor"} for thread in threading.enumerate())
        assert sum(pipeline.lag().values()) == 0
    sink.close()
    source.close()
    check(model, config, strict=False)


def test_a_stop_asked_for_before_the_start_is_heeded(model: FrozenModel, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", random_log(3, 50))
    config = chosen(tmp_path / "data")
    source = EventLogSource(log, follow=True)
    with open_index(config, model) as index:
        sink = FileDeadLetters(tmp_path / "letters.jsonl")
        pipeline = Pipeline(index, source, sink, model, config)
        pipeline.stop()
        pipeline.run()
    sink.close()
    source.close()


def test_a_partition_that_the_source_lost_is_named(model: FrozenModel, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", random_log(4, 50, partitions=2))
    config = chosen(tmp_path / "data")
    assert run(model, config, log)
    fewer = write_log(tmp_path / "fewer", random_log(4, 50, partitions=1))
    with pytest.raises(UsageError, match=r"records of \w+-1, which the source does not have"):
        run(model, config, fewer)


def test_what_a_source_cannot_read_ends_the_run_with_its_error(model: FrozenModel, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", random_log(5, 50))
    config = chosen(tmp_path / "data")
    assert run(model, config, log)
    write_log(log, {name: rows[:1] for name, rows in random_log(5, 50).items()})
    with pytest.raises(UsageError, match="was truncated or replaced"):
        run(model, config, log)


def test_what_the_compactor_stumbles_over_ends_the_run(model: FrozenModel, tmp_path: Path) -> None:
    class Stumbling(Pipeline):
        def _rebalance(self) -> None:
            self.compactor = Broken()
            super()._rebalance()

    class Broken:
        def round(self, *, merges: bool, merge_items: int | None) -> Any:
            raise ZeroDivisionError(f"planning with merges {merges}, {merge_items}")

        def overloaded(self) -> bool:
            return False

    log = write_log(tmp_path / "log", random_log(6, 300))
    config = chosen(tmp_path / "data")
    source = EventLogSource(log, follow=True)
    with open_index(config, model) as index:
        sink = FileDeadLetters(tmp_path / "letters.jsonl")
        with pytest.raises(ZeroDivisionError):
            Stumbling(index, source, sink, model, config).run()
    sink.close()
    source.close()
    check(model, config, strict=False)


def test_metrics_and_progress_agree_with_the_store(model: FrozenModel, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", random_log(7, 400))
    config = chosen(tmp_path / "data")
    source = EventLogSource(log)
    with open_index(config, model) as index:
        sink = FileDeadLetters(tmp_path / "letters.jsonl")
        pipeline = Pipeline(index, source, sink, model, config, span=Span(to_end=True))
        pipeline.run()
        totals = index.view.totals
        registry = pipeline.metrics.registry
        rebalanced = Counter(
            {
                op: int(registry.get_sample_value("facetstream_rebalanced_total", {"op": op}) or 0)
                for op in ("split", "merge")
            }
        )
        assert rebalanced == Counter(split=totals.splits, merge=totals.merges)
        letters = sum(
            registry.get_sample_value("facetstream_dead_letters_total", {"reason": reason}) or 0 for reason in Reason
        )
        assert letters == totals.dead_letters == pipeline.progress.letters
        assert pipeline.progress.records == 400
    sink.close()
    source.close()


def test_a_full_disk_for_dead_letters_ends_the_run_before_the_offset_moves(model: FrozenModel, tmp_path: Path) -> None:
    class FullSink(FileDeadLetters):
        def write(self, letters: Sequence[DeadLetter]) -> None:
            raise StoreError(f"no room for {len(letters)} letters")

    log = write_log(tmp_path / "log", {"items": [item("a", 1), b"{", item("b", 2)], "engagements": []})
    config = chosen(tmp_path / "data", writer={"batch_records": 1})
    source = EventLogSource(log)
    with open_index(config, model) as index:
        sink = FullSink(dead_letter_path(config.data_dir, "g000001"))
        with pytest.raises(StoreError, match="no room for 1 letters"):
            Pipeline(index, source, sink, model, config, span=Span(to_end=True)).run()
        assert index.view.positions.get("items-0", 0) <= 1
    sink.close()
    source.close()
    assert run(model, config, log)
    assert len(list(read_file(dead_letter_path(config.data_dir, "g000001")))) == 1
