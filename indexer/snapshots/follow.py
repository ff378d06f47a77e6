"""Following what is published: readers of all shards, kept current beside their use."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from indexer.snapshots import layout
from indexer.snapshots.delta import Segment
from indexer.snapshots.full import open_full
from indexer.snapshots.reader import SnapshotReader
from schemas.checkpoints import CheckpointFile
from schemas.errors import NotFoundError, StoreCorruptError
from schemas.snapshot import SnapshotInfo, index_name
from schemas.store import StoreMeta

log = structlog.get_logger(__name__)

_TRIES: Final = 5
"""How often a reader begins again with what is current, because a publisher replaced what it was about to read."""


class SnapshotFollower:
    """Readers of the newest snapshots of an index, all its shards.

    :meth:`refresh` may run in a thread of its own; requests take :attr:`readers` once each and use them to the end::

        follower = SnapshotFollower(url)
        follower.refresh()                             # every second or so
        answer = fan_out(follower.readers, items, config, now_ms())

    A full snapshot is opened, checked and brought up to its newest delta before the one in use is let go; a request
    that still holds the older readers is answered by them. No delta is ever paired with a full snapshot it was not made
    for.

    Args:
        url: where snapshots are published: a directory or an fsspec URL.
        cache: where files of another machine are kept meanwhile, one follower's alone; needed unless ``url`` is a
            directory.
        verify: compare files with their checksums before they are used (about a second for two gigabytes).

    Attributes:
        readers: shard number -> reader; empty before the first :meth:`refresh`. Never changed, but replaced.
    """

    def __init__(self, url: str, cache: Path | None = None, *, verify: bool = True) -> None:
        self._target = layout.target_at(url)
        self._verify = verify
        self._cache = cache
        self._lock = threading.Lock()
        self._index: str | None = None
        self.readers: Mapping[int, SnapshotReader] = {}

    def refresh(self) -> bool:
        """Turn to what is published now; whether that is anything new.

        Raises:
            NotFoundError: if nothing is published.
            StoreCorruptError: if something is damaged; what was read before stays in use.
            StoreError: if the target refuses, likewise.
        """
        with self._lock:
            index = layout.current_index(self._target)
            if index is None:
                raise NotFoundError(f"no snapshot is published in {self._target}; see [snapshots] enabled")
            have = self.readers if index == self._index else {}
            found: dict[int, SnapshotReader] = {}
            changed = False
            for shard in layout.shards(self._target, index):
                reader, anew = self._follow(layout.shard_folder(index, shard), have.get(shard))
                changed |= anew
                if reader is not None:
                    found[shard] = reader
                else:
                    log.warning("snapshot_of_shard_missing", index=index, shard=shard, target=str(self._target))
            if not found:
                raise StoreCorruptError(
                    f"{self._target} names index {index}, but no shard of it has a full snapshot; publish it "
                    "(`facetstream snapshot full`)"
                )
            if found != dict(self.readers):
                self._index, self.readers = index, found
                self._forget()
            return changed

    def published(self, store: StoreMeta, shard: int) -> SnapshotReader | None:
        """What is published of one shard of an index version, whether or not readers read that; None for nothing.

        Raises:
            StoreCorruptError, StoreError: as :meth:`refresh`.
        """
        with self._lock:
            return self._follow(layout.shard_folder(index_name(store), shard), None)[0]

    def _follow(self, folder: str, reader: SnapshotReader | None) -> tuple[SnapshotReader | None, bool]:
        """The reader of a shard, and whether it shows anything new."""
        for attempt in range(_TRIES):
            full = layout.current_full(self._target, folder)
            if full is None:
                return reader, False
            try:
                if reader is not None and reader.info.full == full:
                    return reader, self._advance(folder, reader)
                opened = self._open(folder, full)
                self._advance(folder, opened)
            except FileNotFoundError:
                # The publisher has gone on meanwhile.
                log.debug("snapshot_replaced_while_opening", folder=folder, full=full, attempt=attempt)
                continue
            return opened, True
        raise StoreCorruptError(
            f"files of the current snapshot in {folder} of {self._target} are missing; publish the shard in full again "
            "(`facetstream snapshot full`)"
        )

    def _open(self, folder: str, full: str) -> SnapshotReader:
        info, _ = layout.read_pair(self._target, folder, full)
        if info is None:
            raise FileNotFoundError(f"{folder}/{full}/{layout.MANIFEST}")
        return SnapshotReader(info, *open_full(info, lambda name: self._fetched(info, name)))

    def _advance(self, folder: str, reader: SnapshotReader) -> bool:
        _, delta = layout.read_pair(self._target, folder, reader.info.full)
        if delta is None or delta.sequence <= reader.at.sequence:
            return False
        if delta.store != reader.meta:
            raise StoreCorruptError(f"the delta in {folder}/{delta.full} of {self._target} is one of another index")
        applied = reader.at.files if reader.at.kind == "delta" else {}
        new = [self._segment(delta, name) for name in delta.files if name not in applied]
        reader.advance(delta, new)
        return True

    def _segment(self, delta: SnapshotInfo, name: str) -> Segment:
        path = f"{delta.folder}/{delta.full}/{name}"
        data = self._target.read(path)
        if len(data) != delta.files[name].size or hashlib.sha256(data).hexdigest() != delta.files[name].sha256:
            raise StoreCorruptError(f"{path} in snapshots {self._target} was altered")
        return Segment.decode(data)

    def _fetched(self, info: SnapshotInfo, name: str) -> Path:
        """A file of a full snapshot on this machine, checked."""
        path, wanted = f"{info.folder}/{info.full}/{name}", info.files[name]
        here = self._target.local(path)
        if here is not None:
            self._check(here, path, wanted, verify=self._verify)
            return here
        if self._cache is None:
            raise StoreCorruptError(f"snapshots {self._target} are on another machine; name a directory to cache in")
        here = self._cache / path
        with contextlib.suppress(OSError, StoreCorruptError):  # fetched before, by us or by another process
            self._check(here, path, wanted, verify=True)
            return here
        here.parent.mkdir(parents=True, exist_ok=True)
        aside = here.with_name(f".{name}.{secrets.token_hex(4)}")
        try:
            with aside.open("wb") as out:
                for chunk in self._target.chunks(path):
                    out.write(chunk)
            self._check(aside, path, wanted, verify=self._verify)
            aside.replace(here)  # never written in place: others may have mapped what is there
        finally:
            aside.unlink(missing_ok=True)
        return here

    def _check(self, here: Path, path: str, wanted: CheckpointFile, *, verify: bool) -> None:
        size, same = here.stat().st_size, True
        if verify and size == wanted.size:
            with here.open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256
        if size != wanted.size or not same:
            raise StoreCorruptError(
                f"{path} in snapshots {self._target} was altered: {size} bytes, {wanted.size} were written; publish "
                "the shard in full again (`facetstream snapshot full`)"
            )

    def _forget(self) -> None:
        """Remove cached snapshots that are not in use; requests that still read them hold memory maps."""
        if self._cache is None or self._target.local("") is not None:
            return
        used = {self._cache / reader.info.folder / reader.info.full for reader in self.readers.values()}
        for folder in self._cache.glob("*/shard-*/full-*"):
            if folder not in used:
                shutil.rmtree(folder, ignore_errors=True)
