"""Records given to an index that has them, records left out, records lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from indexer.index import Index
from indexer.logical_state import differences, logical_state
from indexer.store import Store
from schemas.errors import StoreError
from tests.builders import Collected, Record, assert_sound, batch_of, config, open_index, upserts


def clicks(start: int, count: int, at: int = 2_000) -> list[Record]:
    return [Record("engagements-0", start + n, f"i{n}", at + n, kind="click", event_id=f"e{n}") for n in range(count)]


def content(store: Store) -> dict[str, list[tuple[bytes, bytes]]]:
    """Every byte of a store."""
    from indexer import keys

    return {family: list(store.scan(family)) for family in keys.FAMILIES}


STREAM = [*upserts(range(10)), *clicks(0, 12), Record("items-0", 10, "i3", 5_000), *clicks(12, 6, at=9_000)]
DEDUPED = config(dedupe={"enabled": True})


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_a_replay_of_what_is_there_writes_nothing(tmp_path: Path, size: int) -> None:
    with open_index(tmp_path / "store", DEDUPED) as index:
        index.writer.apply(batch_of(STREAM, dead_letters=2), lambda _: 77)
        before, sequence = content(index.store), latest_sequence(index)
        repeated = 0
        for at in range(0, len(STREAM), size):
            repeated += index.writer.apply(batch_of(STREAM[at : at + size]), must_not_be_called, again=True).repeated
        assert repeated == len(STREAM)
        assert content(index.store) == before
        assert latest_sequence(index) == sequence


def test_of_a_batch_that_is_partly_there_only_the_rest_is_applied(tmp_path: Path) -> None:
    with open_index(tmp_path / "one", DEDUPED) as one, open_index(tmp_path / "two", DEDUPED) as two:
        one.writer.apply(batch_of(STREAM))
        for cut in (4, 13, 20, 23):
            two.writer.apply(batch_of(STREAM[:cut]), again=True)
        applied = two.writer.apply(batch_of(STREAM), again=True)
        assert applied.repeated == 23
        assert not differences(logical_state(one.store), logical_state(two.store))
        assert_sound(two.store, allow_unbalanced=True)


def test_dead_letters_of_records_that_are_there_are_not_counted_again(tmp_path: Path) -> None:
    batch = replace(batch_of(clicks(0, 4)), letters={"engagements-0": [4, 6], "items-0": [0]})
    batch = replace(batch, positions={"engagements-0": 7, "items-0": 1})
    with open_index(tmp_path / "store") as index:
        index.writer.apply(batch)
        more = replace(batch, positions={"engagements-0": 10, "items-0": 1}, letters={"engagements-0": [4, 6, 9]})
        applied = index.writer.apply(more, again=True)
        assert applied.repeated == 4 + 2
        assert index.view.totals.dead_letters == 4
        assert index.view.positions == {"engagements-0": 10, "items-0": 1}


def test_a_live_stream_may_not_move_back(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        index.writer.apply(batch_of(clicks(0, 4)))
        with pytest.raises(StoreError, match="offset of engagements-0 would move back from 4 to 2"):
            index.writer.apply(batch_of(clicks(0, 2)))


@pytest.mark.parametrize("again", [True, False])
def test_records_may_not_be_left_out(tmp_path: Path, *, again: bool) -> None:
    with open_index(tmp_path / "store") as index:
        index.writer.apply(batch_of(clicks(0, 4)))
        ahead = replace(batch_of(clicks(9, 2)), starts={"engagements-0": 7})
        with pytest.raises(
            StoreError, match=r"stands at 4 of engagements-0, these records begin at 7: 3 would be left"
        ):
            index.writer.apply(ahead, again=again)
        index.writer.apply(replace(ahead, starts={"engagements-0": 4}), again=again)  # offsets have holes
        assert index.view.positions == {"engagements-0": 11}


def test_lost_records_are_counted_and_journalled_with_the_batch_that_follows(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        index.writer.apply(batch_of(clicks(0, 4)))
        batch = replace(batch_of(clicks(9, 2)), starts={"engagements-0": 9}, lost={"engagements-0": 5})
        index.writer.apply(batch)
        index.writer.apply(batch, again=True)
        assert index.view.totals.records_lost == 5
        newest = index.store.newest("journal")
        assert newest is not None
        entry = orjson.loads(newest[1])
        assert (entry["op"], entry["partition"], entry["start"], entry["records"]) == ("gap", "engagements-0", 4, 5)
        assert logical_state(index.store).totals["records_lost"] == 5


def test_a_store_of_an_older_release_opens_and_can_be_read_beside(
    tmp_path: Path, older: Callable[[Path], None]
) -> None:
    with open_index(tmp_path / "store") as index:
        index.writer.apply(batch_of(STREAM))
        state = logical_state(index.store)
    older(tmp_path / "store")
    with Store.open_secondary(tmp_path / "store") as beside:
        assert not differences(state, logical_state(beside))
    with open_index(tmp_path / "store", DEDUPED) as index:
        assert index.writer.apply(batch_of(clicks(18, 6))).engagements_duplicate == 0
        assert index.writer.apply(batch_of(clicks(24, 6))).engagements_duplicate == 6
    with Store.open_secondary(tmp_path / "store") as beside:
        assert len(logical_state(beside).seen) == 6


@pytest.fixture
def older() -> Callable[[Path], None]:
    """Takes away the families that releases before this one did not have."""
    from rocksdict import AccessType

    from indexer.rocksdb import open_db

    def drop(path: Path) -> None:
        db = open_db(path, AccessType.read_write())
        db.drop_column_family("seen")
        db.close()

    return drop


def test_what_was_remembered_outlasts_a_time_without_de_duplication(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with open_index(path, DEDUPED) as index:
        index.writer.apply(batch_of(clicks(0, 3)))
    with open_index(path) as index:
        assert index.writer.apply(batch_of(clicks(3, 4))).engagements_duplicate == 0
    with open_index(path, DEDUPED) as index:
        assert index.writer.apply(batch_of(clicks(7, 5))).engagements_duplicate == 3


def test_a_write_that_fails_leaves_the_memory_of_event_ids_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_index(tmp_path / "store", config(dedupe={"enabled": True, "max_count": 4})) as index:
        index.writer.apply(batch_of(clicks(0, 3)))
        assert index.writer.seen is not None
        before = list(index.writer.seen.entries())

        def refuse(_: object) -> None:
            raise StoreError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(index.store, "write", refuse)
            with pytest.raises(StoreError, match="disk full"):
                index.writer.apply(batch_of(clicks(3, 9)))
        assert list(index.writer.seen.entries()) == before
        assert index.writer.apply(batch_of(clicks(3, 9)), Collected()).engagements_duplicate == 3


def must_not_be_called(_: object) -> int:
    raise AssertionError("nothing is set aside again")


def latest_sequence(index: Index) -> int:
    return index.store._db.latest_sequence_number()
