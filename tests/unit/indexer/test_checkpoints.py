"""Checkpoints: taken beside a writer, incremental, whole or not there, checked when restored, forgotten in time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

from indexer.checkpoints import (
    CheckpointTarget,
    create,
    expire,
    list_,
    newest,
    publish,
    restore,
    restore_newest,
    take_image,
)
from indexer.failpoints import Failpoints
from indexer.logical_state import differences, logical_state
from indexer.store import Store
from schemas.errors import ConfigError, StoreCorruptError, StoreError, StoreMismatchError
from schemas.settings import FAILPOINTS_VARIABLE
from tests.builders import assert_sound, fill, open_index, rebalance, store_meta


@pytest.fixture
def store_dir(tmp_path):
    return tmp_path / "shard-00002"


@pytest.fixture(params=["directory", "object store"])
def target(request, tmp_path):
    if request.param == "directory":
        return CheckpointTarget(tmp_path / "target")
    memory = fsspec.filesystem("memory")
    with suppress(FileNotFoundError):
        memory.rm("/checkpoints", recursive=True)
    return CheckpointTarget("memory://checkpoints")


def take(path, target, seeds, start, **options):
    """Apply 20 items and take a checkpoint; returns it and what the store means."""
    with open_index(path) as index:
        fill(index, seeds, start=start)
        rebalance(index)
        return create(index.store, 2, target, **options), logical_state(index.store)


def meaning(path):
    with open_index(path) as index:
        assert_sound(index.store, allow_unbalanced=True)
        return logical_state(index.store)


def file_of(info, suffix=".sst"):
    """The largest file of a kind: (name in the store, path in the target)."""
    name = max((n for n in info.files if n.endswith(suffix)), key=lambda n: info.files[n].size)
    return name, f"{info.folder}/files/{info.files[name].sha256}"


def test_what_follows_a_restored_store_is_another_history(tmp_path, store_dir, target):
    info, _ = take(store_dir, target, range(20), 0)
    for name in ("one", "two"):
        restore(target, info, tmp_path / name)
    histories = []
    for path in (store_dir, tmp_path / "one", tmp_path / "two"):
        with open_index(path) as index:
            histories.append(index.view.totals.history)
    assert all(histories)
    assert len(set(histories)) == 3


def test_a_restored_store_means_what_the_original_did_and_goes_on(tmp_path, store_dir, target):
    with open_index(store_dir) as index:
        index.bind_source({"kind": "kafka", "items": "items a"})
    info, expected = take(store_dir, target, range(20), 0, epoch=7)
    assert info.store == store_meta()
    assert info.offsets == {"items-0": 20}
    assert (info.source, info.epoch, info.shard) == ({"kind": "kafka", "items": "items a"}, 7, 2)
    assert list_(target) == [info]
    into = tmp_path / "elsewhere" / "shard-00002"
    assert restore_newest(target, store_meta(), 2, into) == info
    assert not differences(expected, meaning(into))
    take(into, target, range(20, 40), 20)
    take(store_dir, CheckpointTarget(tmp_path / "other"), range(20, 40), 20)
    assert not differences(meaning(store_dir), meaning(into))


def test_the_next_checkpoint_copies_only_what_is_new(store_dir, target):
    first, _ = take(store_dir, target, range(500), 0)
    before = set(target.files(f"{first.folder}/files"))
    second, _ = take(store_dir, target, range(500, 520), 500)
    added = set(target.files(f"{first.folder}/files")) - before
    assert added == {file.sha256 for file in second.files.values()} - before
    tables = {file.sha256 for name, file in first.files.items() if name.endswith(".sst")}
    assert len(tables & {file.sha256 for file in second.files.values()}) > len(tables) // 2


def test_nothing_is_copied_when_nothing_happened(store_dir, target, monkeypatch):
    with open_index(store_dir) as index:
        fill(index, range(20))
        first = create(index.store, 2, target)
        monkeypatch.setattr("indexer.checkpoints.taking._digest", _only_small)
        second = create(index.store, 2, target)
    kept = [name for name in first.files if name.endswith(".sst")]
    assert {name: second.files[name] for name in kept} == {name: first.files[name] for name in kept}


def _only_small(path):
    assert path.suffix != ".sst", "a table is hashed once"
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_files_of_a_checkpoint_are_copies_on_the_way_in_and_out(tmp_path, store_dir):
    target = CheckpointTarget(tmp_path / "target")
    info, expected = take(store_dir, target, range(20), 0)
    restore(target, info, tmp_path / "one")
    for path in (*store_dir.glob("*.sst"), *(tmp_path / "one").glob("*.sst")):
        assert path.stat().st_nlink == 1
        path.write_bytes(b"damage")
    restore(target, info, tmp_path / "two")
    assert not differences(expected, meaning(tmp_path / "two"))


def test_one_taken_from_another_thread_beside_the_writer_is_of_one_moment(tmp_path, store_dir):
    target = CheckpointTarget(tmp_path / "target")
    taken = []
    with open_index(store_dir) as index:
        fill(index, range(5))
        stop = threading.Event()

        def copy():
            while not stop.is_set():
                taken.append(create(index.store, 2, target))

        thread = threading.Thread(target=copy)
        thread.start()
        try:
            for first in range(5, 20_000, 5):
                fill(index, range(first, first + 5), start=first)
                if first % 50 == 0:
                    rebalance(index)
                if len({info.total for info in taken}) >= 3:
                    break
        finally:
            stop.set()
            thread.join()
    assert len({info.total for info in taken}) > 1
    for number, info in enumerate(taken[:: max(1, len(taken) // 8)]):
        restore(target, info, tmp_path / str(number))
        with Store.open(tmp_path / str(number)) as store:
            assert store.totals().items_live == info.offsets["items-0"]
            assert_sound(store, allow_unbalanced=True)


def test_the_newest_reaches_furthest_then_is_the_youngest(store_dir, target, monkeypatch):
    clock = iter([5_000, 1_000, 3_000])
    monkeypatch.setattr("indexer.checkpoints.taking.now_ms", lambda: next(clock))
    first, _ = take(store_dir, target, range(20), 0)
    with open_index(store_dir) as index:
        fill(index, range(20, 40), start=20)
        older, younger = create(index.store, 2, target), create(index.store, 2, target)
    assert list_(target) == [younger, older, first]
    assert newest(target, shard=2) == younger
    assert newest(target, shard=1) is None
    assert list_(target, generation="g000002") == list_(target, model_hash="other") == []


@pytest.mark.parametrize("damage", ["altered", "cut", "missing"])
def test_a_damaged_file_is_named_and_the_next_older_checkpoint_taken(tmp_path, store_dir, target, damage):
    first, expected = take(store_dir, target, range(20), 0)
    second, _ = take(store_dir, target, range(20, 40), 20)
    name = next(n for n in second.files if n.endswith(".sst") and second.files[n] not in first.files.values())
    path = f"{second.folder}/files/{second.files[name].sha256}"
    whole = target.read(path)
    target.remove(path)
    if damage != "missing":
        target.write(path, whole[:-1] if damage == "cut" else b"?" + whole[1:])
    into = tmp_path / "into"
    with pytest.raises(StoreCorruptError, match="damaged") as caught:
        restore(target, second, into)
    assert second.name in str(caught.value)
    assert name in str(caught.value)
    assert not into.exists()
    assert not into.with_name("into.partial").exists()
    assert restore_newest(target, store_meta(), 2, into) == first
    assert not differences(expected, meaning(into))


def test_none_is_restored_where_all_are_damaged(tmp_path, store_dir, target):
    info, _ = take(store_dir, target, range(20), 0)
    target.write(file_of(info, "CURRENT")[1], b"nonsense")
    assert restore_newest(target, store_meta(), 2, tmp_path / "into") is None
    assert not (tmp_path / "into").exists()


def test_a_manifest_that_says_other_than_its_store_is_refused(tmp_path, store_dir, target):
    info, _ = take(store_dir, target, range(20), 0)
    with pytest.raises(StoreCorruptError, match="the manifest says otherwise"):
        restore(target, info.model_copy(update={"offsets": {"items-0": 21}}), tmp_path / "into")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"files": {"../../x": {}}}'])
def test_a_manifest_that_does_not_decode_is_left_out_and_keeps_the_files(store_dir, target, content):
    info, _ = take(store_dir, target, range(20), 0)
    target.write(f"{info.folder}/9999-9999.json", content)
    files = target.files(f"{info.folder}/files")
    assert list_(target) == [info]
    assert expire(target, 1, grace_s=-1) == []
    assert target.files(f"{info.folder}/files") == files


def test_a_file_name_that_leads_elsewhere_is_refused(store_dir, target):
    info, _ = take(store_dir, target, range(20), 0)
    document = json.loads(info.model_dump_json())
    document["files"]["../evil"] = document["files"]["CURRENT"]
    target.write(f"{info.name}.json", json.dumps(document).encode())
    assert list_(target) == []


def test_another_model_is_never_restored(tmp_path, store_dir, target):
    info, _ = take(store_dir, target, range(20), 0)
    with pytest.raises(StoreMismatchError, match="model_hash: store has 'model', wanted 'other'"):
        restore(target, info, tmp_path / "into", wanted=store_meta(model_hash="other"))
    with pytest.raises(StoreMismatchError, match="codebook_hash: store has 'codebook', wanted 'other'"):
        restore(target, info, tmp_path / "into", wanted=store_meta(codebook_hash="other"))
    assert restore_newest(target, store_meta(model_hash="other"), 2, tmp_path / "into") is None
    assert restore_newest(target, store_meta(half_lives_s=(1,)), 2, tmp_path / "into") is None
    assert restore_newest(target, store_meta(), 2, tmp_path / "into", accept=lambda found: bool(found.source)) is None
    assert not (tmp_path / "into").exists()


def test_nothing_is_restored_over_a_store(store_dir, target):
    info, expected = take(store_dir, target, range(20), 0)
    with pytest.raises(StoreError, match="move it away first"):
        restore(target, info, store_dir)
    assert not differences(expected, meaning(store_dir))


def test_a_store_whose_making_was_cut_short_gives_way_and_nothing_else_does(tmp_path, store_dir, target):
    info, expected = take(store_dir, target, range(20), 0)
    into = tmp_path / "into"
    into.mkdir()
    for name in ("LOG", "LOCK", "IDENTITY", "MANIFEST-000001", "000001.dbtmp", "000004.log"):
        (into / name).touch()
    (into / "notes.txt").touch()
    with pytest.raises(StoreError, match="move it away first"):
        restore(target, info, into)
    (into / "notes.txt").unlink()
    (into / "000009.sst").touch()
    with pytest.raises(StoreCorruptError, match="CURRENT is missing"):
        restore_newest(target, store_meta(), 2, into)
    (into / "000009.sst").unlink()
    restore(target, info, into)
    assert not differences(expected, meaning(into))


def test_the_youngest_and_the_furthest_stay_and_only_their_files(tmp_path, store_dir, target):
    taken = [take(store_dir, target, range(first, first + 20), first)[0] for first in range(0, 80, 20)]
    again, _ = take(tmp_path / "anew", target, range(10), 0)  # as after a topic was made anew: far behind, but young
    target.write(f"{again.folder}/files/.left.by-a-crash", b"half")
    assert expire(target, 1) == [taken[2], taken[1], taken[0]]
    assert list_(target) == [taken[3], again]
    unused = target.files(f"{again.folder}/files")
    assert expire(target, 1, grace_s=-1) == []
    needed = {file.sha256 for info in (taken[3], again) for file in info.files.values()}
    assert set(target.files(f"{again.folder}/files")) == needed < set(unused)
    restore(target, taken[3], tmp_path / "into")
    meaning(tmp_path / "into")


def test_files_that_vanish_before_the_manifest_is_published_are_put_back(tmp_path, store_dir, target, monkeypatch):
    info, expected = take(store_dir, target, range(20), 0)

    def expire_meanwhile(name):
        if name == "checkpoint.copied":
            target.remove(f"{info.name}.json")
            target.remove(file_of(info)[1])

    monkeypatch.setattr("indexer.checkpoints.taking.failpoint", expire_meanwhile)
    with open_index(store_dir) as index:
        create(index.store, 2, target)
    assert restore_newest(target, store_meta(), 2, tmp_path / "into") is not None
    assert not differences(expected, meaning(tmp_path / "into"))


def test_a_target_that_cannot_be_reached_is_named(tmp_path, store_dir):
    with pytest.raises(ConfigError, match="nowhere://x"):
        CheckpointTarget("nowhere://x")
    (tmp_path / "file").write_text("no directory")
    with open_index(store_dir) as index, pytest.raises(StoreError, match="file/target"):
        create(index.store, 2, CheckpointTarget(tmp_path / "file" / "target"))
    assert [path.name for path in tmp_path.iterdir()] == ["file", store_dir.name]


def test_the_store_may_go_on_and_close_while_its_image_is_published(tmp_path, store_dir, target):
    with open_index(store_dir) as index:
        fill(index, range(20))
        image, expected = take_image(index.store, 2), logical_state(index.store)
        fill(index, range(20, 40), start=20)
    shutil.rmtree(store_dir)
    info = publish(image, target)
    assert info.offsets == {"items-0": 20}
    assert not image.path.exists()
    restore(target, info, tmp_path / "into")
    assert not differences(expected, meaning(tmp_path / "into"))


@pytest.mark.parametrize("moment", ["before", "between files"])
def test_one_that_is_stopped_publishes_nothing_and_leaves_nothing(tmp_path, store_dir, target, moment, monkeypatch):
    stopped = threading.Event()
    if moment == "before":
        stopped.set()
    put = target.put
    monkeypatch.setattr(target, "put", lambda *row: (put(*row), stopped.set()))
    with open_index(store_dir) as index:
        fill(index, range(20))
        with pytest.raises(StoreError, match="cut short"):
            publish(take_image(index.store, 2), target, stopped)
        assert list_(target) == []
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
        monkeypatch.undo()
        assert publish(take_image(index.store, 2), target).total == 20


# -- failures on the way -----------------------------------------------------------------------------------------------

_TAKE = """
import sys
from pathlib import Path
from indexer.checkpoints import CheckpointTarget, create, restore_newest
from tests.builders import fill, open_index, store_meta
home, doing = Path(sys.argv[1]), sys.argv[2]
target = CheckpointTarget(home / "target")
if doing == "create":
    with open_index(home / "shard-00002") as index:
        fill(index, range(20, 40), start=20)
        index.store.sync()
        create(index.store, 2, target)
else:
    restore_newest(target, store_meta(), 2, home / "into")
"""


def _run(home, doing, spec):
    return subprocess.run(
        [sys.executable, "-c", _TAKE, str(home), doing],
        env=os.environ | {FAILPOINTS_VARIABLE: spec, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        check=False,
        timeout=60,
    ).returncode


@pytest.mark.parametrize("point", ["before", "linked", "copied", "published"])
def test_a_process_killed_while_it_takes_one_leaves_only_whole_checkpoints(tmp_path, store_dir, point):
    target = CheckpointTarget(tmp_path / "target")
    first, _ = take(store_dir, target, range(20), 0)
    assert _run(tmp_path, "create", f"checkpoint.{point}=kill") == -signal.SIGKILL
    found = list_(target)
    assert [info.total for info in found] == ([40, 20] if point == "published" else [20])
    for info in found:
        restore(target, info, tmp_path / str(info.total))
        meaning(tmp_path / str(info.total))
    last, expected = take(store_dir, target, range(40, 60), 40)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    expire(target, 1, grace_s=-1)
    assert set(target.files(f"{first.folder}/files")) == {file.sha256 for file in last.files.values()}
    assert restore_newest(target, store_meta(), 2, tmp_path / "into") == last
    assert not differences(expected, meaning(tmp_path / "into"))


@pytest.mark.parametrize("point", ["before", "copied", "renamed"])
def test_a_process_killed_while_it_restores_leaves_a_whole_store_or_none(tmp_path, store_dir, point):
    target, into = CheckpointTarget(tmp_path / "target"), tmp_path / "into"
    info, expected = take(store_dir, target, range(20), 0)
    assert _run(tmp_path, "restore", f"restore.{point}=kill") == -signal.SIGKILL
    assert into.exists() == (point == "renamed")
    if point != "renamed":
        assert restore_newest(target, store_meta(), 2, into) == info
    assert not into.with_name("into.partial").exists()
    assert not differences(expected, meaning(into))


@pytest.mark.parametrize("point", ["before", "linked", "copied"])
def test_a_failure_leaves_nothing_behind_and_the_store_usable(tmp_path, store_dir, target, monkeypatch, point):
    with open_index(store_dir) as index:
        fill(index, range(20))
        with monkeypatch.context() as patch:
            patch.setattr("indexer.checkpoints.taking.failpoint", Failpoints(f"checkpoint.{point}=error"))
            with pytest.raises(StoreError, match=point):
                create(index.store, 2, target)
        assert list_(target) == []
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
        assert create(index.store, 2, target).total == 20
