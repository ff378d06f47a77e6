"""Disks that lie, fill up or refuse: an error that names the place, files left as they were, and nothing invented."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from indexer.checkpoints import CheckpointTarget, create, restore
from indexer.logical_state import LogicalState, differences, logical_state
from indexer.store import Store
from schemas.errors import StoreCorruptError, StoreError
from tests.builders import assert_sound, check_store, fill, open_index, rebalance, store_meta

ITEMS = 200


def apply(index, first, last=ITEMS):
    """Items from ``first`` on, twenty in a batch."""
    for start in range(first, last, 20):
        fill(index, range(start, start + 20), start=start)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> LogicalState:
    with open_index(tmp_path_factory.mktemp("undisturbed")) as index:
        apply(index, 0)
        return logical_state(index.store)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """What a killed process leaves: half of the items in tables, half in the write-ahead log, none in both."""
    path = tmp_path_factory.mktemp("killed")
    with open_index(path / "running") as index:
        apply(index, 0, ITEMS // 2)
        rebalance(index)
        index.store.checkpoint(path / "flushed")  # as a side effect
        apply(index, ITEMS // 2)
        shutil.copytree(path / "running", path / "store")
    return path / "store"


@pytest.fixture
def store(killed, tmp_path) -> Path:
    return shutil.copytree(killed, tmp_path / "store")


def largest(store, pattern):
    return max(store.glob(pattern), key=lambda path: path.stat().st_size)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0xFF
    path.write_bytes(data)


def cut(path, share):
    os.truncate(path, int(path.stat().st_size * share))


def contents(store):
    """Everything RocksDB keeps; its diaries and its lock aside."""
    return {path.name: path.read_bytes() for path in store.iterdir() if not path.name.startswith(("LOG", "LOCK"))}


DAMAGE: dict[str, Callable[[Path], None]] = {
    "table: index flipped": lambda store: flip(largest(store, "*.sst"), 0.97),
    "table: end flipped": lambda store: flip(largest(store, "*.sst"), 1.0),
    "table: cut": lambda store: cut(largest(store, "*.sst"), 0.5),
    "table: empty": lambda store: cut(largest(store, "*.sst"), 0),
    "table: missing": lambda store: largest(store, "*.sst").unlink(),
    "CURRENT: nonsense": lambda store: (store / "CURRENT").write_bytes(b"\xffnonsense\n"),
    "CURRENT: empty": lambda store: (store / "CURRENT").write_bytes(b""),
    "CURRENT: missing": lambda store: (store / "CURRENT").unlink(),
    "MANIFEST: missing": lambda store: largest(store, "MANIFEST-*").unlink(),
    "MANIFEST: empty": lambda store: cut(largest(store, "MANIFEST-*"), 0),
    "MANIFEST: begin flipped": lambda store: flip(largest(store, "MANIFEST-*"), 0),
    "MANIFEST: middle flipped": lambda store: flip(largest(store, "MANIFEST-*"), 0.5),
    "MANIFEST: end flipped": lambda store: flip(largest(store, "MANIFEST-*"), 1.0),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_refused_by_name_and_left_as_it_is(store, damage):
    DAMAGE[damage](store)
    before = contents(store)
    for _ in range(2):
        with pytest.raises(StoreCorruptError, match="is damaged") as caught:
            open_index(store)
        assert str(store) in str(caught.value)
        assert "restore a checkpoint or" in str(caught.value)
        assert contents(store) == before


@pytest.mark.parametrize("suffix", [".sst", ".log"])
def test_data_without_the_file_that_names_them_are_no_reason_to_begin_anew(store, suffix):
    """RocksDB alone would: it makes an empty database and removes the tables."""
    for path in list(store.iterdir()):
        if path.suffix != suffix:
            path.unlink()
    before = contents(store)
    for way in (open_index, Store.open, Store.open_secondary, lambda path: Store.create(path, store_meta())):
        with pytest.raises(StoreCorruptError, match="CURRENT is missing; it was left as it is"):
            way(store)
    assert contents(store) == before


def test_no_flipped_byte_of_any_table_goes_unseen(killed, tmp_path, undisturbed):
    rng = random.Random(5)
    refused = 0
    for number in range(60):
        store = shutil.copytree(killed, tmp_path / str(number))
        table = rng.choice(sorted(store.glob("*.sst")))
        flip(table, rng.random())
        try:
            with open_index(store) as index:
                assert not differences(undisturbed, logical_state(index.store))
                assert_sound(index.store, allow_unbalanced=True)
        except StoreCorruptError:
            refused += 1
        shutil.rmtree(store)
    assert refused > 50


def test_a_manifest_cut_anywhere_never_passes_for_a_smaller_index(killed, tmp_path, undisturbed):
    """RocksDB takes the end of the file for the end of the list and forgets the tables listed behind it."""
    rng = random.Random(6)
    refused = 0
    for number in range(40):
        store = shutil.copytree(killed, tmp_path / str(number))
        cut(largest(store, "MANIFEST-*"), rng.random())
        try:
            with open_index(store) as index:
                if check_store(index.store, allow_unbalanced=True).ok:
                    apply(index, index.view.positions.get("items-0", 0))
                    assert not differences(undisturbed, logical_state(index.store))
        except StoreCorruptError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("fault", ["flipped", "cut", "zeroed"])
def test_behind_damage_in_the_log_data_and_offsets_go_back_together_and_are_read_again(store, undisturbed, fault, at):
    log = largest(store, "*.log")
    size = log.stat().st_size
    if fault == "flipped":
        flip(log, at)
    else:
        cut(log, at)
    if fault == "zeroed":
        os.truncate(log, size)
    with capture_logs() as logs, open_index(store) as index:
        assert_sound(index.store, allow_unbalanced=True)
        reached = index.view.positions["items-0"]
        assert ITEMS // 2 <= reached <= ITEMS
        assert index.view.totals.items_live == reached
        apply(index, reached)
        assert not differences(undisturbed, logical_state(index.store))
    if fault == "flipped" and reached < ITEMS:
        told = [(line["store"], line["file"]) for line in logs if line["event"] == "write_ahead_log_dropped"]
        assert (str(store), log.name) in told
        assert all(line["log_level"] == "warning" for line in logs)


def test_a_log_damaged_before_what_tables_hold_already_is_refused(tmp_path):
    """One family was flushed and is ahead of the log that holds the others' part of the same batches."""
    with open_index(tmp_path / "running") as index:
        apply(index, 0)
        index.store._family["items"].flush()
        shutil.copytree(tmp_path / "running", tmp_path / "store")
    flip(min((tmp_path / "store").glob("*.log")), 0.5)
    before = contents(tmp_path / "store")
    with pytest.raises(StoreCorruptError, match="is damaged"):
        open_index(tmp_path / "store")
    assert contents(tmp_path / "store") == before


def test_a_log_that_vanished_below_what_tables_hold_is_refused(tmp_path):
    with open_index(tmp_path / "running") as index:
        apply(index, 0)
        index.store._family["items"].flush()
        shutil.copytree(tmp_path / "running", tmp_path / "store")
    for log in (tmp_path / "store").glob("*.log"):
        log.unlink()
    with pytest.raises(StoreCorruptError):
        open_index(tmp_path / "store")


# -- no room -----------------------------------------------------------------------------------------------------------


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def go_on_after(path, undisturbed):
    with open_index(path) as index:
        assert_sound(index.store, allow_unbalanced=True)
        apply(index, index.view.positions["items-0"])
        assert not differences(undisturbed, logical_state(index.store))


def assert_refuses_for_good(index, reached):
    """Also when there is room again: a torn record may lie at the end of the log, and nothing may follow it."""
    for _ in range(2):
        with pytest.raises(StoreError, match="start again"):
            apply(index, reached)
    assert index.store.offsets() == index.view.positions == {"items-0": reached}


def test_a_full_disk_stops_the_writer_until_it_is_started_again(tmp_path, undisturbed):
    path = tmp_path / "store"
    index = open_index(path)
    apply(index, 0, 100)
    with file_size_limit(max(log.stat().st_size for log in path.glob("*.log")) + 20_000):
        with pytest.raises(StoreError, match=r"cannot write to .*File too large.*nothing of this batch was applied"):
            apply(index, 100)
        reached = index.view.positions["items-0"]
        assert 100 <= reached < ITEMS
        assert_refuses_for_good(index, reached)
        with pytest.raises(StoreError, match="cannot sync"):
            index.store.sync()
    assert_refuses_for_good(index, reached)
    shutil.copytree(path, tmp_path / "killed")
    with pytest.raises(StoreError):
        index.close()
    for left in (path, tmp_path / "killed"):
        go_on_after(left, undisturbed)


@pytest.mark.parametrize("doing", ["flush", "compaction"])
def test_no_room_for_a_table_stops_the_writer_until_it_is_started_again(tmp_path, undisturbed, doing):
    path = tmp_path / "store"
    index = open_index(path)
    apply(index, 0, 60)
    index.store._family["postings"].flush()
    apply(index, 60, 100)
    if doing == "compaction":
        index.store._family["postings"].flush()
    with file_size_limit(500):
        if doing == "compaction":
            index.store._family["postings"].compact_range(b"", b"\xff")  # says nothing
        else:
            with pytest.raises(Exception, match="File too large"):  # rocksdict's own
                index.store._family["postings"].flush()
        assert_refuses_for_good(index, 100)
    assert_refuses_for_good(index, 100)
    shutil.copytree(path, tmp_path / "killed")
    with pytest.raises(StoreError):
        index.close()
    for left in (path, tmp_path / "killed"):
        go_on_after(left, undisturbed)


def test_no_room_for_a_checkpoint_is_told_and_publishes_nothing(tmp_path):
    target = CheckpointTarget(tmp_path / "target")
    with open_index(tmp_path / "store") as index:
        apply(index, 0)
        index.store.checkpoint(tmp_path / "flushed")  # so that the store itself needs no room
        biggest = largest(tmp_path / "store", "*.sst").stat().st_size
        with file_size_limit(biggest - 1), pytest.raises(StoreError, match="checkpoint"):
            create(index.store, 0, target)
        assert not list((tmp_path / "target").rglob("*.json"))
        info = create(index.store, 0, target)
    with file_size_limit(biggest - 1), pytest.raises(StoreError, match="cannot restore checkpoint"):
        restore(target, info, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    restore(target, info, tmp_path / "restored")


# -- no permission -----------------------------------------------------------------------------------------------------

_OPEN = """
import os, sys
from pathlib import Path
from schemas.errors import StoreError
from tests.builders import fill, open_index
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
try:
    open_index(Path(sys.argv[1]))
except StoreError as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
"""


def test_a_directory_that_may_only_be_read_is_refused_by_name(store, tmp_path):
    before = contents(store)
    for path in (store, *store.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    try:
        for path in (store, store.parent / "new"):
            root = str(Path(__file__).parents[3])
            environment = os.environ | {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
            done = subprocess.run(
                [sys.executable, "-c", _OPEN, str(path)], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 3, done.stderr
            assert str(path) in done.stdout
            assert "Permission denied" in done.stdout
    finally:
        store.chmod(0o755)
    assert contents(store) == before
    reply = None
    with Store.open_secondary(store) as reader:
        reply = check_store(reader, allow_unbalanced=True)
    assert reply.ok
