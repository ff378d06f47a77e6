"""The store's directory: who may open it, what survives, and what is said when its bytes are bad."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rocksdict import AccessType, Rdict

from indexer import rocksdb, write_batch
from indexer.index import Index
from indexer.loading import load_view
from indexer.store import Store
from schemas.errors import StoreCorruptError, StoreError, StoreLockedError, StoreMismatchError
from tests.builders import Record, assert_sound, batch_of, codewords, config, fill, open_index, store_meta, upserts


def test_a_second_opening_for_writing_is_refused(tmp_path: Path) -> None:
    with open_index(tmp_path / "store"), pytest.raises(StoreLockedError, match="held by another process"):
        open_index(tmp_path / "store")


def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from indexer.store import Store\n"
        "from schemas.errors import StoreLockedError\n"
        "try: Store.open(Path(sys.argv[1]))\n"
        "except StoreLockedError as error: sys.exit(error.exit_code)"
    )
    with open_index(tmp_path / "store") as index:
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "store"], check=False)
        assert done.returncode == 3
        fill(index, range(5))
        assert_sound(index.store, allow_unbalanced=True)


def test_the_lock_goes_with_closing(tmp_path: Path) -> None:
    for _ in range(3):
        index = open_index(tmp_path / "store")
        index.close()
        index.close()


def test_there_must_be_a_store_to_open(tmp_path: Path) -> None:
    for way in (Store.open, Store.open_secondary):
        with pytest.raises(StoreError, match="holds no store; start `facetstream run`"):
            way(tmp_path)


def test_a_store_is_not_made_over_another(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", store_meta()).close()
    with pytest.raises(StoreError, match="already holds a store"):
        Store.create(tmp_path / "store", store_meta())


def test_a_store_cannot_be_made_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot make"):
        Store.create(tmp_path / "file" / "store", store_meta())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_hash": "other"}, "model_hash: store has 'model', wanted 'other'"),
        ({"codebook_hash": "other"}, "codebook_hash"),
        ({"half_lives_s": (60,)}, "half_lives_s"),
        ({"facets": 3, "dim": 9}, "facets: store has 2, wanted 3; dim"),
    ],
)
def test_a_store_of_something_else_is_refused_by_name_and_let_go(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    open_index(tmp_path / "store").close()
    with pytest.raises(StoreMismatchError, match=words) as caught:
        open_index(tmp_path / "store", **change)
    assert caught.value.exit_code == 3
    open_index(tmp_path / "store").close()


def test_names_and_dates_of_the_model_may_differ(tmp_path: Path) -> None:
    open_index(tmp_path / "store").close()
    open_index(tmp_path / "store", model_name="renamed", model_version="2", created_at_ms=5).close()


@pytest.mark.parametrize("families", ["none", "all"])
def test_a_process_killed_while_making_a_store_leaves_one_that_can_be_made_again(tmp_path: Path, families: str) -> None:
    path = tmp_path / "store"
    path.mkdir()
    known = rocksdb.families() if families == "all" else None
    Rdict(str(path), rocksdb.options(), known, AccessType.read_write()).close()
    with open_index(path) as index:
        fill(index, range(5))
        assert_sound(index.store, allow_unbalanced=True)


def test_a_store_that_lost_its_description_is_damaged_not_new(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        fill(index, range(5))
        change = index.store.batch()
        change.delete_many("meta", [b"store"])
        index.store.write(change)
    with pytest.raises(StoreCorruptError, match="lacks its description"):
        open_index(tmp_path / "store")


def test_a_secondary_sees_what_the_writer_wrote_when_it_looks_again(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        fill(index, range(3))
        with Store.open_secondary(index.store.path) as reader:
            assert reader.totals().items_live == 3
            fill(index, range(3, 8), start=3)
            assert reader.totals().items_live == 3
            reader.catch_up()
            assert reader.totals().items_live == 8
            assert_sound(reader, allow_unbalanced=True)


def test_a_secondary_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    open_index(tmp_path / "store").close()
    with Store.open_secondary(tmp_path / "store"):
        assert len(list(tmp_path.glob("facetstream-secondary-*"))) == 1
    (tmp_path / "store" / "CURRENT").write_text("nonsense")
    with pytest.raises(StoreError):
        Store.open_secondary(tmp_path / "store")
    assert not list(tmp_path.glob("facetstream-secondary-*"))


def test_a_refused_write_changes_neither_store_nor_view(tmp_path: Path) -> None:
    index = open_index(tmp_path / "store")
    fill(index, range(4))
    before = index.view.totals
    index.store._db.close()  # as when the disk is gone
    with pytest.raises(StoreError, match="nothing of this batch was applied"):
        fill(index, range(4), start=4)
    with pytest.raises(StoreError, match="nothing of this batch was applied"):
        index.writer.apply(batch_of([Record("engagements-0", 0, "later", 5, kind="click")]))
    assert index.view.totals == before
    assert len(index.view.ids) == 4
    assert len(index.pending) == 0
    assert sum(index.view.facets[0].sizes().tolist()) == 4
    with pytest.raises(StoreError, match="cannot sync"):
        index.store.sync()
    with pytest.raises(StoreError, match="cannot close"):
        index.close()
    index.close()
    with open_index(tmp_path / "store") as again:
        assert again.view.totals == before


def test_an_offset_does_not_move_back(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        fill(index, range(4))
        with pytest.raises(StoreError, match="offset of items-0 would move back from 4 to 2"):
            index.writer.apply(batch_of(upserts([1, 2])))
        assert index.view.positions == {"items-0": 4}
        assert_sound(index.store, allow_unbalanced=True)


def flushed(path: Path) -> Path:
    """A store whose content lies in table files."""
    with open_index(path) as index:
        fill(index, range(2_000))
        for column in index.store._family.values():
            column.flush(True)
    return path


def read_all(path: Path) -> None:
    with Store.open(path) as store:
        load_view(store, codewords())
        store.get_many("content", list(store.scan_keys("items")))
        sum(1 for _ in store.scan_keys("postings"))


def test_a_damaged_block_is_an_error_for_who_scans_and_who_looks_up_never_a_small_index(tmp_path: Path) -> None:
    """RocksDB's iterators end at a damaged block, and rocksdict's say nothing."""
    path = flushed(tmp_path / "store")
    tables = sorted(path.glob("*.sst"), key=lambda file: file.stat().st_size)
    largest = tables[-4:]  # vectors, content, postings, items
    for table in largest:
        whole = table.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 3] ^= 0xFF
        table.write_bytes(damaged)
        with pytest.raises(StoreCorruptError, match="is damaged: Corruption"):
            read_all(path)
        table.write_bytes(whole)
    Index.open(path, store_meta(), codewords(), config()).close()


def test_a_missing_table_is_a_clear_error(tmp_path: Path) -> None:
    path = flushed(tmp_path / "store")
    max(path.glob("*.sst"), key=lambda file: file.stat().st_size).unlink()
    with pytest.raises(StoreError):
        open_index(path)


def test_the_newest_entry_and_none(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        assert index.store.newest("journal") is None
        change = index.store.batch()
        change.journal(0, b"first")
        change.journal(1, b"second")
        index.store.write(change)
        newest = index.store.newest("journal")
        assert newest is not None
        assert newest[1] == b"second"


def test_the_journal_keeps_its_newest_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_batch, "_JOURNAL_KEPT", 3)
    with open_index(tmp_path / "store") as index:
        for sequence in range(5):
            change = index.store.batch()
            change.journal(sequence, b"%d" % sequence)
            index.store.write(change)
        assert [value for _, value in index.store.scan("journal")] == [b"2", b"3", b"4"]
