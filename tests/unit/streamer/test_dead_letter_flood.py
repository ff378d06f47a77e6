"""Bad records by the hundred thousand, and one at every place: they cost no memory and hold nobody up."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model_runtime.runtime import FrozenModel
from schemas.config import Config
from streamer.batching import BATCH_BYTES
from streamer.dead_letters import FileDeadLetters, read_file
from streamer.generations import open_index
from streamer.pipeline import Pipeline
from streamer.reader import Span
from tests.builders import assert_view_is_loaded, tiny_model
from tests.scripted_source import ENGAGEMENTS, ITEMS, Scripted, ScriptedSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.dead_letters import DeadLetter
    from streamer.sources.base import Partition

BATCH = 1_000


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_model()


class Counting(FileDeadLetters):
    """Remembers how many letters came at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.sizes: list[int] = []

    def write(self, letters: Sequence[DeadLetter]) -> None:
        self.sizes.append(len(letters))
        super().write(letters)


def run(
    folder: Path, model: FrozenModel, records: dict[Partition, list[Scripted]], **sections: Any
) -> tuple[list[int], list[DeadLetter], dict[str, int], set[str]]:
    config = Config.model_validate(
        {"data_dir": folder, "writer": {"batch_records": BATCH}, "rebalance": {"low": 2, "high": 8}} | sections
    )
    path = folder / "letters.jsonl"
    with open_index(config, model) as index, closing(Counting(path)) as sink:
        Pipeline(index, ScriptedSource(records), sink, model, config, span=Span(to_end=True)).run()
        assert index.view.totals.dead_letters == sum(sink.sizes)
        assert_view_is_loaded(index)
        return sink.sizes, list(read_file(path)), dict(index.view.positions), set(index.view.ids)


def item(offset: int, at: int) -> Scripted:
    event = {"type": "item.created", "item_id": f"i{offset}", "occurred_at": at, "title": "word"}
    return Scripted(offset, json.dumps(event).encode(), None, at)


def click(offset: int, name: str, at: int) -> Scripted:
    event = {"type": "engagement", "item_id": name, "occurred_at": at, "user_id": "u", "kind": "click"}
    return Scripted(offset, json.dumps(event).encode(), None, at)


@pytest.mark.slow
def test_a_flood_of_bad_records_is_set_aside_in_bounded_batches(model: FrozenModel, tmp_path: Path) -> None:
    bad = b"not json"
    records = {
        ITEMS: [item(0, 1), *(Scripted(offset, bad) for offset in range(1, 200_000)), item(200_000, 2)],
        ENGAGEMENTS: [click(0, "i200000", 3)],
    }
    sizes, letters, positions, ids = run(tmp_path, model, records)
    assert max(sizes) <= BATCH
    assert [letter.offset for letter in letters] == list(range(1, 200_000))
    assert positions == {"items-0": 200_001, "engagements-0": 1}
    assert ids == {"i0", "i200000"}


def test_a_flood_behind_an_event_that_is_held_back_is_cut_too(model: FrozenModel, tmp_path: Path) -> None:
    """The engagements are ahead in event time: their letters are held with them until the items have come as far."""
    records = {
        ITEMS: [item(offset, 10 * offset) for offset in range(2_000)],
        ENGAGEMENTS: [
            click(0, "i0", 15_000),
            *(Scripted(offset, b"{") for offset in range(1, 9_000)),
            click(9_000, "i1", 16_000),
        ],
    }
    sizes, letters, positions, ids = run(tmp_path, model, records, source={"max_poll_records": 500})
    assert max(sizes) <= BATCH
    assert [letter.offset for letter in letters] == list(range(1, 9_000))
    assert positions == {"items-0": 2_000, "engagements-0": 9_001}
    assert len(ids) == 2_000


def test_large_bad_records_make_small_batches(model: FrozenModel, tmp_path: Path) -> None:
    rows = [Scripted(offset, b"x" * 200_000) for offset in range(300)]
    sizes, letters, positions, _ = run(tmp_path, model, {ITEMS: rows, ENGAGEMENTS: []})
    assert max(sizes) <= 1 + BATCH_BYTES // 200_000
    assert len(letters) == 300
    assert positions == {"items-0": 300}


POISON = [
    b"",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"1e999999",
    b'"\\ud800"',
    b'{"type":"item.created","item_id":"\\ud800","occurred_at":1,"title":"x"}',
    b'{"type":"item.created","item_id":"a","occurred_at":1e400,"title":"x"}',
    b'{"type":"item.created","item_id":"a","occurred_at":1,"embedding":[1e400]}',
    b'{"type":"item.created","item_id":"a","occurred_at":1,"embedding":[]}',
    b'{"type":"item.created","item_id":"a","occurred_at":1,"embedding":[1,2,3]}',
    b'{"type":"item.created","item_id":"a","occurred_at":' + b"9" * 5_000 + b',"title":"x"}',
    b'{"type":"engagement","item_id":"a","occurred_at":1,"user_id":"u","kind":"","value":NaN}',
    b"null",
    b"\0" * 64,
]


def test_a_poisonous_record_holds_up_nobody_wherever_it_stands(model: FrozenModel, tmp_path: Path) -> None:
    rows: dict[Partition, list[Scripted]] = {ITEMS: [], ENGAGEMENTS: []}
    for number, value in enumerate([*POISON, *reversed(POISON)]):
        for partition, good in (
            (ITEMS, item(2 * number + 1, number)),
            (ENGAGEMENTS, click(2 * number + 1, "i1", number)),
        ):
            rows[partition] += [Scripted(2 * number, value), good]
    count = 2 * len(POISON)
    _, letters, positions, ids = run(tmp_path, model, rows)
    assert positions == {"items-0": 2 * count, "engagements-0": 2 * count}
    assert ids == {f"i{2 * number + 1}" for number in range(count)}
    for topic in ("items", "engagements"):
        assert sorted(letter.offset for letter in letters if letter.topic == topic) == list(range(0, 2 * count, 2))
    assert {letter.error for letter in letters} <= {"ValidationError", "RecordError"}
