"""What producers, clocks and deliveries do to the order of events, through the whole pipeline, against the oracle."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.logical_state import LetterFacts, LogicalState, differences, logical_state
from indexer.verify import verify
from model_runtime.runtime import FrozenModel
from schemas.artifact import FeatureSpec
from schemas.config import Config
from schemas.dead_letters import Reason
from schemas.events import ITEM_EVENT, ItemContent
from streamer.dead_letters import FileDeadLetters, read_file
from streamer.generations import open_index
from streamer.pipeline import Pipeline, Progress
from streamer.reader import Span
from streamer.sources.base import Partition, Stream
from tests.builders import DIM, FACETS, HALF_LIVES_S, Record, assert_view_is_loaded, vector_of
from tests.reference import ReferenceIndex
from tests.scripted_source import Scripted, ScriptedSource

NOW_S = int(time.time())
MAX_FUTURE_S = 86_400
ITEMS = [Partition(Stream.ITEMS, "items", number) for number in range(2)]
ENGAGEMENTS = [Partition(Stream.ENGAGEMENTS, "engagements", number) for number in range(2)]
AHEAD_MS = (NOW_S + MAX_FUTURE_S - 3_600) * 1_000  # as far as a clock may be
LATEST_MS = (NOW_S + MAX_FUTURE_S + 36_000) * 1_000  # while this test runs
TOO_FAR_MS = LATEST_MS + 36_000_000

Logs = dict[Partition, list[Record]]


class KilledError(Exception):
    """Stands for the moment at which a process dies."""


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return FrozenModel.untrained(
        facets=2,
        layers=2,
        codewords=4,
        dim=4,
        features=FeatureSpec(buckets=256, dense_dim=FACETS * DIM),
        token_dim=4,
        hidden=(4,),
        threads=1,
    )


@st.composite
def lives(draw: Any) -> Logs:
    """Lives of a few items as several producers tell them, late, twice, wrongly ordered, by clocks that are wrong."""
    logs: Logs = {partition: [] for partition in [*ITEMS, *ENGAGEMENTS]}

    def send(partition: Partition, record: Record) -> None:
        for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):  # a producer that got no answer sends again
            logs[partition].append(record._replace(source=str(partition), offset=len(logs[partition])))

    for _ in range(draw(st.integers(1, 25))):
        number = draw(st.integers(0, 5))
        name, items, engagements = f"i{number}", ITEMS[number % 2], ENGAGEMENTS[number % 2]
        at = draw(st.sampled_from([0, 1_000, 2_000, 50_000, 10**6, 10**9, NOW_S * 1_000, AHEAD_MS, TOO_FAR_MS]))
        at += draw(st.integers(0, 3))
        upsert = Record("", 0, name, at, vector_of(draw(st.integers(0, 3))))
        other = Record("", 0, name, at, vector_of(draw(st.integers(4, 6))))
        delete = Record("", 0, name, at)
        event_id = draw(st.sampled_from([None, "e1", "e2", "e3"]))
        click = Record("", 0, name, at, kind=draw(st.sampled_from(["click", "like"])), value=0.5, event_id=event_id)
        story = draw(st.sampled_from(["upsert", "two producers", "older after", "revived", "deleted first", "clicks"]))
        if story == "upsert":
            send(items, upsert)
        elif story == "two producers":
            send(items, upsert)
            send(items, other)
        elif story == "older after":
            send(items, other._replace(at=at + 10))
            send(items, upsert)
        elif story == "revived":
            send(items, delete)
            send(items, upsert._replace(at=at + 1))
            send(items, delete)  # late, and older than what revived it
        elif story == "deleted first":
            send(items, delete._replace(at=at + 5))
            send(items, upsert)
        else:
            send(engagements, click)
            send(engagements, click._replace(at=max(0, at - draw(st.sampled_from([0, 1_000, 10**9])))))
    return logs


def reading_order(logs: Logs) -> list[Record]:
    """By the latest time so far in each partition, items first; letters do not move the clock."""
    rows = []
    for rank, (_, log) in enumerate(logs.items()):
        clock = 0
        for record in log:
            clock = max(clock, record.at) if record.at < LATEST_MS else clock
            rows.append((clock, rank, record.offset, record))
    return [record for *_, record in sorted(rows, key=lambda row: row[:3])]


def expected_state(logs: Logs, config: Config, model: FrozenModel) -> LogicalState:
    oracle = ReferenceIndex(config.pending, config.limits.max_kinds, config.dedupe)
    for record in reading_order(logs):
        if record.at < LATEST_MS:
            oracle.apply(record)
        else:
            topic, _, number = record.source.rpartition("-")
            key = record.item_id.encode()
            oracle.letters.append(LetterFacts(Reason.FUTURE, topic, int(number), record.offset, key, record.encoded))
    state = oracle.state()
    items = {}
    for item_id, facts in state.items.items():
        items[item_id] = facts
        if facts.state == "live":
            event = ITEM_EVENT.validate_json(oracle.items[item_id].last.encoded)
            assert isinstance(event, ItemContent)
            encoded = model.encode([event])
            vector = hashlib.sha256(encoded.vectors.tobytes()).hexdigest()
            items[item_id] = facts._replace(raw=tuple(encoded.raw[0].tolist()), vector=vector)
    ends = {str(partition): len(log) for partition, log in logs.items() if log}
    return replace(state, items=items, offsets=ends)


def run(logs: Logs, config: Config, model: FrozenModel, die_after: int | None) -> LogicalState | None:
    batches = 0

    def count(_: Progress) -> None:
        nonlocal batches
        batches += 1
        if batches == die_after:
            raise KilledError

    rows: Mapping[Partition, list[Scripted]] = {
        partition: [Scripted(each.offset, each.encoded, each.item_id.encode(), each.at) for each in log]
        for partition, log in logs.items()
    }
    file = config.data_dir / "letters.jsonl"
    with open_index(config, model) as index, closing(FileDeadLetters(file)) as sink:
        pipeline = Pipeline(
            index, ScriptedSource(dict(rows)), sink, model, config, span=Span(to_end=True), on_progress=count
        )
        try:
            pipeline.run()
        except KilledError:
            return None
        assert_view_is_loaded(index)
        reply = verify(index.store, allow_unbalanced=True)
        assert reply.ok, reply.violations
        return logical_state(index.store, read_file(file))


@given(
    logs=lives(),
    size=st.sampled_from([1, 3, 16]),
    polled=st.sampled_from([1, 5, 100]),
    pending=st.sampled_from([{}, {"max_age_s": 10}, {"max_count": 2}]),
    dedupe=st.sampled_from(
        [{}, {"enabled": True}, {"enabled": True, "window_s": 10}, {"enabled": True, "max_count": 1}]
    ),
    deaths=st.lists(st.integers(1, 6), max_size=3),
)
def test_an_index_means_what_the_oracle_says_whatever_came_twice_late_or_too_early(
    model: FrozenModel,
    logs: Logs,
    size: int,
    polled: int,
    pending: dict[str, int],
    dedupe: dict[str, Any],
    deaths: list[int],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "data_dir": Path(folder),
                "pending": pending,
                "dedupe": dedupe,
                "limits": {"max_future_s": MAX_FUTURE_S},
                "counters": {"half_lives_s": HALF_LIVES_S},
                "rebalance": {"low": 2, "high": 8, "interval_ms": 1},
                "source": {"align_wait_s": 60, "max_poll_records": polled},
                "writer": {"batch_records": size, "group_commit_ms": 1},
            }
        )
        state = None
        for die_after in [*deaths, None]:
            if state is None:
                state = run(logs, config, model, die_after)
        assert state is not None
        assert differences(expected_state(logs, config, model), state) == []
