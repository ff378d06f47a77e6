"""An index belongs to the source that it was filled from; going back is explicit and journalled."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from indexer.store import Store
from schemas.errors import StoreMismatchError
from tests.builders import Record, assert_sound, assert_view_is_loaded, batch_of, check_store, fill, open_index

KAFKA = {"kind": "kafka", "items": "items id-1", "engagements": "engagements id-2"}


def test_a_source_is_remembered_and_known_again(tmp_path: Path) -> None:
    for _ in range(2):
        with open_index(tmp_path / "store") as index:
            index.bind_source(KAFKA)
            assert index.source() == KAFKA


def test_a_source_of_another_kind_is_refused(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        index.bind_source(KAFKA)
        with pytest.raises(StoreMismatchError, match="filled from a source of kind kafka, this one is eventlog"):
            index.bind_source({"kind": "eventlog"})
        assert index.source() == KAFKA


def test_a_topic_made_anew_is_refused_and_named(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        index.bind_source(KAFKA)
        with pytest.raises(
            StoreMismatchError,
            match=r"items from topic items id-1, now it is items id-9: it was deleted and created anew.*--reset",
        ):
            index.bind_source(KAFKA | {"items": "items id-9"})


def test_what_a_broker_does_not_tell_is_not_compared_and_learned_later(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        index.bind_source({"kind": "kafka"})
        index.bind_source(KAFKA)
        index.bind_source({"kind": "kafka"})
        assert index.source() == KAFKA


def test_a_reset_goes_back_keeps_what_is_indexed_and_is_journalled(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        index.bind_source(KAFKA)
        fill(index, range(8))
        index.reset({"items-0": 2}, "topic created anew", {"items": "items id-9"})
        index.bind_source(KAFKA | {"items": "items id-9"})
        with pytest.raises(StoreMismatchError, match="engagements id-2, now it is engagements id-3"):
            index.bind_source(KAFKA | {"items": "items id-9", "engagements": "engagements id-3"})
        assert index.view.positions == {"items-0": 2}
        assert_view_is_loaded(index)
        assert_sound(index.store, allow_unbalanced=True)  # items come from beyond the offset, and may
        newest = index.store.newest("journal")
        assert newest is not None
        entry = orjson.loads(newest[1])
        assert (entry["op"], entry["partition"], entry["before"], entry["after"]) == ("reset", "items-0", 8, 2)
        assert entry["why"] == "topic created anew"
        index.writer.apply(batch_of([Record("items-0", 2, "i0", 9_000)]))
    with open_index(tmp_path / "store") as index:
        assert index.view.positions == {"items-0": 3}
        assert index.view.totals.items_live == 7
        assert_sound(index.store, allow_unbalanced=True)


def test_items_from_beyond_every_offset_still_violate_i5_after_a_reset(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        fill(index, range(3))
        index.reset({"items-0": 0}, "try again")
        write = index.store.batch()
        write.offset("items-0", 1)
        totals = index.view.totals.model_copy(update={"reset_from": {"items-0": 2}})
        write.totals(totals)
        index.store.write(write)
        reply = check_store(index.store, allow_unbalanced=True)
        assert [violation.invariant for violation in reply.violations] == ["I5"]


def test_reading_commands_see_a_reset(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        fill(index, range(3))
        with Store.open_secondary(tmp_path / "store") as beside:
            index.reset({"items-0": 1, "engagements-0": 5}, "for a test")
            beside.catch_up()
            assert beside.offsets() == {"items-0": 1, "engagements-0": 5}
            assert beside.totals().reset_from == {"items-0": 3, "engagements-0": 0}
