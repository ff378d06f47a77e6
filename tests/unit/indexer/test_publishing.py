"""Snapshots: atomic whatever fails or is killed, never paired wrongly, read from elsewhere, removed when old."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from indexer.checkpoints.target import CheckpointTarget
from indexer.failpoints import POINTS
from indexer.index import Index
from indexer.order import impact_of
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.retrieve import fan_out, retrieve
from indexer.snapshots import Publisher, SnapshotFollower, SnapshotReader, layout, list_, target_at
from indexer.snapshots.retention import remove_old
from schemas.config import RetrievalConfig
from schemas.errors import NotFoundError, StoreCorruptError, StoreError, UsageError
from schemas.settings import FAILPOINTS_VARIABLE
from tests.builders import FACETS, Record, batch_of, config, fill, open_index, rebalance, upserts, vector_of

ROOT = Path(__file__).parents[3]
CONFIG = RetrievalConfig()


def publisher_of(index: Index, target: CheckpointTarget | str | Path, shard: int = 0, keep: int = 2) -> Publisher:
    where = target if isinstance(target, CheckpointTarget) else target_at(str(target))
    return Publisher(index.view, shard, where, keep)


def following(url: str | Path, **options: Any) -> SnapshotFollower:
    follower = SnapshotFollower(str(url), **options)
    follower.refresh()
    return follower


def shows(reader: SnapshotReader, index: Index) -> bool:
    """Whether a reader has exactly the live view's items."""
    every = np.arange(len(index.view.ids))
    view = ViewReader(index.view)
    mine, its = (each.locate(list(index.view.ids)) for each in (reader, view))
    return (
        reader.at.offsets == index.view.positions
        and mine.ordinals.tolist() == its.ordinals.tolist()
        and mine.vectors.tobytes() == its.vectors.tobytes()
        and reader.item_ids(every) == list(index.view.ids)
        and reader.engagement(every, 0, 10**6).tobytes() == view.engagement(every, 0, 10**6).tobytes()
    )


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with open_index(tmp_path / "store") as found:
        fill(found, range(60))
        rebalance(found)
        yield found


class Hooked(CheckpointTarget):
    """A directory that calls ``before`` with each path that is about to be written."""

    def __init__(self, url: Path, before: Callable[[str], None]) -> None:
        super().__init__(url)
        self.before = before

    def stream(self, path: str, chunks: Iterable[bytes | memoryview]) -> None:
        self.before(path)
        super().stream(path, chunks)

    def write(self, path: str, data: bytes) -> None:
        self.before(path)
        super().write(path, data)


def test_nothing_is_published_yet(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no snapshot is published in .*; see \[snapshots\] enabled"):
        following(tmp_path)


def test_a_full_snapshot_is_of_one_moment_while_the_writer_goes_on(tmp_path: Path, index: Index) -> None:
    before = [ViewReader(index.view).vectors(facet, np.arange(60)) for facet in range(FACETS)]
    offset = [60]

    def go_on(path: str) -> None:
        """Update, delete and add between any two arrays."""
        if not path.endswith(".npy"):
            return
        start = offset[0]
        index.writer.apply(
            batch_of(
                [
                    Record("items-0", start, f"i{start % 60}", 10**5 + start, vector_of(start)),
                    Record("items-0", start + 1, f"i{(start + 7) % 60}", 10**5 + start),
                    Record("items-0", start + 2, f"new{start}", 10**5 + start, vector_of(start)),
                    Record("engagements-0", start, f"i{start % 60}", 10**5, kind="click"),
                ]
            )
        )
        rebalance(index)
        offset[0] += 3

    url = tmp_path / "snapshots"
    info = publisher_of(index, Hooked(url, go_on)).full()
    assert info.offsets == {"items-0": 60}
    follower = following(url)
    assert shows(follower.readers[0], index)
    (url / info.folder / info.full / layout.DELTA).unlink()
    alone = following(url).readers[0]
    assert alone.at.kind == "full"
    assert alone.locate(list(index.view.ids)).ordinals.tolist() == list(range(60))
    for facet in range(FACETS):
        assert alone.vectors(facet, np.arange(60)).tobytes() == before[facet].tobytes()
    assert alone.engagement(np.arange(60), 0, 10**5).sum() == 0


def test_members_are_stored_in_order_though_the_live_view_is_not(tmp_path: Path) -> None:
    with open_index(tmp_path / "store", config(retrieval={"order_slack": 1})) as index:
        fill(index, range(60))
        rebalance(index)
        clicks = [Record("engagements-0", row, f"i{row * 3}", 2_000, kind="click") for row in range(20)]
        index.writer.apply(batch_of(clicks))
        assert index.view.members.touched.any()
        publisher_of(index, tmp_path / "s").full()
        view = index.view
    stored = following(tmp_path / "s").readers[0].stored
    for row in np.flatnonzero(stored["length"]).tolist():
        begin, end = stored["start"][row], stored["start"][row] + stored["length"][row]
        members = stored["ordinal"][begin:end].astype(np.int64)
        assert stored["place"][members, row % FACETS].tolist() == list(range(len(members)))
        heat = view.heats(members)
        assert stored["heat"][begin:end].tolist() == heat.tolist()
        impact = impact_of(heat, view.items["created_at"][members], 1.0, view.impact.half_life_s, view.landmark)
        assert np.lexsort((-members, -impact)).tolist() == list(range(len(members)))
        vectors = view.vectors(members, row % FACETS)
        assert stored["bits"][begin:end].tobytes() == vectors.tobytes()


def test_a_request_ends_with_the_reader_it_began_with_though_its_files_are_gone(tmp_path: Path, index: Index) -> None:
    url = tmp_path / "s"
    publisher = publisher_of(index, url, keep=1)
    publisher.full()
    follower = following(url)
    held, expected = follower.readers, retrieve(follower.readers[0], ["i1"], CONFIG, 10**6).ordinals.tolist()
    fill(index, range(60, 80), start=60)
    publisher.full()
    assert follower.refresh()
    assert not follower.refresh()
    assert len(list(url.glob("*/shard-*/full-*"))) == 1
    assert retrieve(held[0], ["i1"], CONFIG, 10**6).ordinals.tolist() == expected
    assert shows(follower.readers[0], index)


def test_segments_are_few_and_hold_everything(tmp_path: Path, index: Index) -> None:
    publisher = publisher_of(index, tmp_path / "s")
    assert publisher.delta() is None
    publisher.full()
    assert publisher.delta() is None
    follower = following(tmp_path / "s")
    written = 0
    for start in range(60, 1_060, 10):
        fill(index, range(start, start + 10), start=start)
        info = publisher.delta()
        assert info is not None
        assert len(info.files) <= 8
        written += list(info.files.values())[-1].size
        if start % 70 == 0:
            assert follower.refresh()
            assert shows(follower.readers[0], index)
    follower.refresh()
    assert shows(follower.readers[0], index)
    assert written < 15 * info.size  # not 50 times, as it would be if each held everything
    assert shows(following(tmp_path / "s").readers[0], index)


def test_what_could_not_be_published_comes_with_the_next(tmp_path: Path, index: Index) -> None:
    failing: list[str] = []

    def refuse(path: str) -> None:
        if any(path.endswith(name) for name in failing):
            raise StoreError("disk full")

    url = tmp_path / "s"
    publisher = publisher_of(index, Hooked(url, refuse))
    for name in ("state.npy", layout.MANIFEST, f"shard-00000/{layout.POINTER}"):
        failing[:] = [name]
        with pytest.raises(StoreError):
            publisher.full()
        assert publisher.delta() is None
        assert not index.view.watchers
    failing.clear()
    publisher.full()
    follower = following(url)
    for count, name in enumerate((".npz", layout.DELTA, layout.MANIFEST, "place.npy")):
        fill(index, [count], start=60 + count)
        failing[:] = [name]
        with pytest.raises(StoreError):
            (publisher.delta if count < 2 else publisher.full)()
        failing.clear()
        publisher.delta()
        assert follower.refresh()
        assert shows(follower.readers[0], index)
    publisher.full()
    assert len(index.view.watchers) == 1
    assert_clean(url)


def assert_clean(url: Path) -> None:
    """Nothing lies there but what manifests name, and lately replaced segments of the current snapshot."""
    target = target_at(str(url))
    current = {f"{info.folder}/{info.full}" for info, now in list_(target) if now}
    named = {layout.POINTER}
    for info, _ in list_(target):
        named |= {f"{info.folder}/{layout.POINTER}", f"{info.folder}/{info.full}/{layout.MANIFEST}"}
        named |= {f"{info.folder}/{info.full}/{name}" for name in (*info.files, layout.DELTA)}
    there = {str(path.relative_to(url)) for path in url.rglob("*") if path.is_file()}
    late = {path for path in there - named if path.endswith(".npz") and path.rpartition("/")[0] in current}
    assert there - named == late


def test_a_shard_lost_meanwhile_is_published_no_more(tmp_path: Path, index: Index) -> None:
    ours = [True]
    url = tmp_path / "snapshots"

    def lose(path: str) -> None:
        ours[0] = ours[0] and not path.endswith("f1.leaves.npy")

    def check() -> None:
        if not ours[0]:
            raise StoreError("another process's now")

    publisher = Publisher(index.view, 0, target_at(str(url)), 2, check)
    published = publisher.full()
    more(index)
    lost = Publisher(index.view, 0, Hooked(url, lose), 2, check)
    for publish in (lost.full, publisher.delta):
        with pytest.raises(StoreError, match="another process's now"):
            publish()
    follower = SnapshotFollower(str(url))
    follower.refresh()
    assert follower.readers[0].at.full == published.full
    assert follower.readers[0].at.offsets == published.offsets
    ours[0] = True
    assert publisher.delta() is not None
    follower.refresh()
    assert follower.readers[0].at.offsets == index.view.positions


def test_what_was_removed_is_published_anew(tmp_path: Path, index: Index) -> None:
    url = tmp_path / "snapshots"
    publisher = Publisher(index.view, 0, target_at(str(url)), 2)
    publisher.full()
    shutil.rmtree(url)
    more(index)
    with pytest.raises(StoreError, match=r"has lost .*: the next is published in full"):
        publisher.delta()
    assert publisher.current is None
    publisher.full()
    follower = following(tmp_path / "snapshots")
    assert follower.readers[0].at.offsets == index.view.positions


def test_an_index_without_any_shard_is_named(tmp_path: Path, index: Index) -> None:
    url = tmp_path / "snapshots"
    published = Publisher(index.view, 0, target_at(str(url)), 2).full()
    (url / published.folder / "CURRENT").unlink()
    with pytest.raises(StoreCorruptError, match="no shard of it has a full snapshot; publish it"):
        following(tmp_path / "snapshots")


def test_a_cache_is_never_written_under_its_readers(tmp_path: Path, index: Index) -> None:
    url = "memory://never-written-under"
    Publisher(index.view, 0, target_at(url), 2).full()
    one, other = (SnapshotFollower(url, tmp_path / "cache") for _ in range(2))
    one.refresh()
    files = {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.npy")}
    other.refresh()
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.npy")} == files
    damaged = next(iter(files))
    damaged.write_bytes(b"cut")
    SnapshotFollower(url, tmp_path / "cache").refresh()
    assert damaged.stat().st_ino != files[damaged] or damaged.stat().st_size > 3


def test_a_restored_store_does_not_go_on_from_what_the_other_published(tmp_path: Path, index: Index) -> None:
    url = str(tmp_path / "snapshots")
    published = Publisher(index.view, 0, target_at(url), 2)
    published.full()
    published.close()
    index.store.begin_history()
    index.close()
    with open_index(tmp_path / "store") as again:
        follower = following(tmp_path / "snapshots")
        with pytest.raises(UsageError, match="restored"):
            Publisher(again.view, 0, target_at(url), 2).go_on(follower.readers[0])


def test_retention_keeps_what_it_was_told_and_the_current_one(tmp_path: Path, index: Index) -> None:
    url = tmp_path / "s"
    publisher = publisher_of(index, url, keep=2)
    names = []
    for start in range(60, 110, 10):
        names.append(publisher.full().full)
        fill(index, range(10), start=start)
        publisher.delta()
    folder = next(url.glob("*/shard-00000"))
    assert sorted(path.name for path in folder.glob("full-*")) == names[-2:]
    target = target_at(str(url))
    for stray in (
        f"{names[-2]}/delta-x.npz",
        f"{names[-2]}/.half",
        ".CURRENT.1",
        "full-0000000000000-00000000/live.npy",
    ):
        target.write(f"{folder.relative_to(url)}/{stray}", b"x")
    remove_old(target, str(folder.relative_to(url)), names[-1], 2)
    assert_clean(url)
    remove_old(target, str(folder.relative_to(url)), names[-2], 1)  # a clock that went back
    assert [path.name for path in folder.glob("full-*")] == [names[-2]]


def test_on_other_machines_what_was_replaced_lately_stays(tmp_path: Path, index: Index) -> None:
    url = tmp_path / "s"
    publisher = publisher_of(index, url, keep=3)
    names = [publisher.full() for _ in range(3)]
    remove_old(target_at(str(url)), names[0].folder, names[2].full, 1, grace_s=600)
    assert len(list(url.glob("*/*/full-*"))) == 3
    remove_old(target_at(str(url)), names[0].folder, names[2].full, 1, grace_s=0)
    assert len(list(url.glob("*/*/full-*"))) == 1


def test_another_machine_reads_by_way_of_a_cache(tmp_path: Path, index: Index) -> None:
    url, cache = f"memory://snapshots-{os.getpid()}", tmp_path / "cache"
    publisher = publisher_of(index, url)
    publisher.full()
    with pytest.raises(StoreCorruptError, match="name a directory to cache in"):
        following(url)
    follower = following(url, cache=cache)
    fill(index, range(60, 70), start=60)
    publisher.delta()
    assert follower.refresh()
    assert shows(follower.readers[0], index)
    fill(index, range(60, 70), start=70)
    publisher.full()
    assert follower.refresh()
    assert shows(follower.readers[0], index)
    assert len(list(cache.glob("*/*/full-*"))) == 1
    fsspec.filesystem("memory").rm(f"/snapshots-{os.getpid()}", recursive=True)


def test_damage_is_named_and_what_was_read_before_stays(tmp_path: Path, index: Index) -> None:
    url = tmp_path / "s"
    publisher = publisher_of(index, url)
    publisher.full()
    follower = following(url)
    fill(index, range(5), start=60)
    delta = publisher.delta()
    assert delta is not None
    folder = url / delta.folder / delta.full
    [segment] = delta.files
    whole = (folder / segment).read_bytes()
    (folder / segment).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreCorruptError, match=r"delta-.* was altered"):
        follower.refresh()
    assert follower.readers[0].at.kind == "full"
    (folder / segment).write_bytes(whole)
    assert follower.refresh()
    info = publisher.full()
    path = url / info.folder / info.full / "bits.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreCorruptError, match=r"bits\.npy .* was altered"):
        follower.refresh()
    assert shows(follower.readers[0], index)
    path.unlink()
    with pytest.raises(StoreCorruptError, match="are missing"):
        follower.refresh()
    path.write_bytes(whole)
    assert follower.refresh()


def test_a_delta_of_another_snapshot_or_index_is_refused(tmp_path: Path, index: Index) -> None:
    url = tmp_path / "s"
    publisher = publisher_of(index, url)
    publisher.full()
    fill(index, range(5), start=60)
    old = publisher.delta()
    new = publisher.full()
    assert old is not None
    folder = url / new.folder
    for name in (layout.DELTA, *old.files):
        shutil.copy(folder / old.full / name, folder / new.full / name)
    with pytest.raises(StoreCorruptError, match=f"says it is delta of .*{old.full}"):
        following(url)
    other = old.model_copy(update={"full": new.full, "store": old.store.model_copy(update={"created_at_ms": 1})})
    (folder / new.full / layout.DELTA).write_text(other.model_dump_json())
    with pytest.raises(StoreCorruptError, match="one of another index"):
        following(url)


def test_readers_turn_to_another_generation_when_all_its_shards_are_there(tmp_path: Path) -> None:
    url = tmp_path / "s"
    indexes = {
        (generation, shard): open_index(tmp_path / f"{generation}-{shard}", generation=generation)
        for generation in ("g1", "g2")
        for shard in (0, 1)
    }
    try:
        for number, each in enumerate(indexes.values()):
            fill(each, range(20), prefix=f"of{number}-")
        publishers = {at: publisher_of(each, url, at[1]) for at, each in indexes.items()}
        for shard in (0, 1):
            publishers["g1", shard].full()
        follower = following(url)
        assert sorted(follower.readers) == [0, 1]
        publishers["g2", 0].full()
        assert not follower.refresh()
        publishers["g1", 0].full()
        publishers["g2", 1].full()
        assert follower.refresh()
        assert {reader.meta.generation for reader in follower.readers.values()} == {"g2"}
        publishers["g1", 0].full()  # it publishes on, until it hears of it
        assert not follower.refresh()
        publisher_of(indexes["g1", 0], url, 0).full()  # back again
        assert follower.refresh()
        found = fan_out(follower.readers, ["of0-1", "of1-1", "of2-1"], CONFIG, 10**6)
        assert found.missing == ["of2-1"]
        assert {name[:3] for name in found.item_ids} == {"of0", "of1"}
    finally:
        for each in indexes.values():
            each.close()


# -- in other processes ------------------------------------------------------------------------------------------------

_PUBLISH = """
import sys
import threading
from pathlib import Path
from indexer.snapshots import Publisher, target_at
from tests.builders import fill, open_index, rebalance
from tests.unit.indexer.test_publishing import more
with open_index(Path(sys.argv[1])) as index:
    publisher = Publisher(index.view, 0, target_at(sys.argv[2]), 2)
    for turn in range(int(sys.argv[3])):
        if turn % 10 == 0:
            publisher.full()
        more(index)
        if turn % 4 == 3:
            rebalance(index)
        publisher.delta()
"""


def more(index: Index) -> None:
    """Ten records: what they make of the index is told by their number alone, see :func:`expected`."""
    start = index.view.positions.get("items-0", 0)
    records = upserts(range(start, start + 9), start=start)
    index.writer.apply(batch_of([*records, Record("items-0", start + 9, f"i{start}", 10**6)]))


def expected(offset: int) -> list[str]:
    """Ids of the live items."""
    return [f"i{number}" for number in range(offset) if number % 10 not in {0, 9}]


def assert_right(reader: SnapshotReader) -> None:
    """It holds what the records up to its offset make, each item in one leaf of each facet."""
    offset = reader.at.offsets.get("items-0", 0)
    live = expected(offset)
    asked = [f"i{number}" for number in range(offset + 20)]
    found = reader.locate(asked)
    assert reader.item_ids(found.ordinals) == live
    assert reader.at.items_live == len(live)
    for row in range(0, len(live), 17):
        expected_vector = np.array(vector_of(int(live[row][1:])), np.float32)
        assert found.vectors[row].ravel().tolist() == expected_vector.tolist()
    leaves = reader.centroids()
    for facet in range(FACETS):
        mine = leaves.leaf[leaves.pointer[facet] : leaves.pointer[facet + 1]].tolist()
        members = [reader.members(facet, leaf, 10**6) for leaf in mine]
        assert np.sort(np.concatenate([np.empty(0, np.int64), *members])).tolist() == found.ordinals.tolist()


def publish(store: Path, url: Path, turns: int, failpoints: str = "") -> subprocess.Popen[bytes]:
    environment = os.environ | {FAILPOINTS_VARIABLE: failpoints, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _PUBLISH, str(store), str(url), str(turns)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", [name for name in POINTS if name.startswith(("snapshot.", "delta."))])
def test_killed_anywhere_readers_have_a_whole_pair_and_the_next_publication_cleans_up(
    tmp_path: Path, name: str
) -> None:
    store, url = tmp_path / "store", tmp_path / "s"
    assert publish(store, url, 3).wait(60) == 0
    follower = following(url)
    assert_right(follower.readers[0])
    assert publish(store, url, 13, f"{name}=kill@2").wait(60) == -signal.SIGKILL
    follower.refresh()
    assert_right(follower.readers[0])
    assert_right(following(url).readers[0])
    assert publish(store, url, 1).wait(60) == 0
    assert_clean(url)
    assert follower.refresh()
    assert_right(follower.readers[0])
    assert follower.readers[0].at.offsets["items-0"] > 0


def test_another_process_reads_while_publishing_goes_on(tmp_path: Path) -> None:
    url, turns = tmp_path / "s", 120
    process = publish(tmp_path / "store", url, turns)
    while not (url / layout.POINTER).exists():
        assert process.poll() is None
    follower, seen, fulls = following(url), 0, set()
    at = -1
    while process.poll() is None:
        follower.refresh()
        reader = follower.readers[0]
        offset = reader.at.offsets.get("items-0", 0)
        assert offset >= at  # never back
        if offset > at:
            at, seen = offset, seen + 1
            fulls.add(reader.info.full)
            assert_right(reader)
    assert process.returncode == 0
    follower.refresh()
    assert_right(follower.readers[0])
    assert follower.readers[0].at.offsets == {"items-0": 10 * turns}
    assert seen > 5
    assert len(fulls) > 2


def test_threads_are_answered_while_another_refreshes(tmp_path: Path) -> None:
    url, everything = tmp_path / "s", RetrievalConfig(k=10_000, indices=10_000, scan=10**6, probes=10**6)
    failed: list[BaseException] = []
    done = threading.Event()
    with open_index(tmp_path / "store") as index:
        publisher = publisher_of(index, url)
        more(index)
        publisher.full()
        follower = following(url)

        def ask() -> None:
            try:
                while not done.is_set():
                    reader = follower.readers[0]
                    with reader.frozen():
                        offset = reader.at.offsets["items-0"]
                        found = retrieve(reader, ["i1"], everything, 10**6)
                    assert sorted([*reader.item_ids(found.ordinals), "i1"]) == sorted(expected(offset))
            except BaseException as error:  # noqa: BLE001  # raised by the test's own thread
                failed.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for turn in range(40):
            more(index)
            if turn % 9 == 8:
                rebalance(index)
            if turn % 13 == 12:
                publisher.full()
            publisher.delta()
            follower.refresh()
        done.set()
        for thread in threads:
            thread.join()
    assert not failed, failed
