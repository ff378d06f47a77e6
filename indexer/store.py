"""The RocksDB directory of one shard of one generation: opening, reading, and the single atomic write."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import orjson
import structlog
from pydantic import ValidationError
from rocksdict import AccessType, Rdict, WriteOptions

from indexer import keys
from indexer.failpoints import failpoint
from indexer.labels import UNLABELLED, Labels, LabelTable, decode, table_of
from indexer.rocksdb import (
    check_end,
    check_manifest,
    copy_db,
    dropped_from_log,
    entries_put,
    existing_families,
    open_db,
    store_error,
)
from indexer.write_batch import Batch
from schemas.errors import StoreCorruptError, StoreError, StoreMismatchError
from schemas.refresh import Refreshed
from schemas.store import FORMAT_VERSION, StoreMeta, Totals

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 4_096  # records of a scan: as many as stay in the processor's cache


def store_path(data_dir: Path, generation: str, shard: int = 0) -> Path:
    """Where the store of a generation's shard lies below the data directory."""
    return data_dir / "generations" / generation / f"shard-{shard:05d}"


class Store:
    """One open store. Use :meth:`create`, :meth:`open` or :meth:`open_secondary`; close it, or use it as a context."""

    def __init__(
        self,
        path: Path,
        db: Rdict,
        secondary_dir: tempfile.TemporaryDirectory[str] | None = None,
        families: Sequence[str] = keys.FAMILIES,
    ) -> None:
        self.path = path
        self._db = db
        self._secondary_dir = secondary_dir
        self._family = {name: db.get_column_family(name) for name in families}
        self._handle = {name: db.get_column_family_handle(name) for name in families}
        self._write_options = WriteOptions()
        self._closed = False

    @classmethod
    def create(cls, path: Path, meta: StoreMeta) -> Store:
        """Make an empty store.

        Raises:
            StoreError: if there is one already, or the directory cannot be written.
        """
        if is_there(path):
            raise StoreError(f"{path} already holds a store; open it, or choose another --data-dir")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {path}: {error}; choose another --data-dir") from error
        return _describe(cls(path, open_db(path, AccessType.read_write())), meta)

    @classmethod
    def open_or_create(cls, path: Path, meta: StoreMeta) -> Store:
        """Open for writing what is there, else make an empty store.

        Raises:
            StoreError, StoreLockedError: as :meth:`open` and :meth:`create`.
        """
        if not is_there(path):
            return cls.create(path, meta)
        store = cls.open(path)
        # RocksDB makes its files first: a process killed right then leaves a store that says nothing of itself.
        if all(next(store.scan_keys(family), None) is None for family in keys.FAMILIES):
            return _describe(store, meta)
        return store

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open for writing; one process at a time.

        Raises:
            StoreError: if there is none.
            StoreLockedError: if another process has it.
        """
        if not is_there(path):
            raise StoreError(f"{path} holds no store; start `facetstream run` or `facetstream demo` to make one")
        check_manifest(path)
        store = cls(path, open_db(path, AccessType.read_write()))
        for name, size, why in dropped_from_log(path):
            log.warning("write_ahead_log_dropped", store=str(path), file=name, bytes=size, why=why)
        return store

    @classmethod
    def open_secondary(cls, path: Path) -> Store:
        """Open for reading beside a writer; shows the writer's state at the last :meth:`catch_up`.

        Raises:
            StoreError: if there is none.
        """
        if not is_there(path):
            raise StoreError(f"{path} holds no store; start `facetstream run` or `facetstream demo` to make one")
        aside = tempfile.TemporaryDirectory(prefix="facetstream-secondary-")
        try:
            there = existing_families(path)
            store = cls(path, open_db(path, AccessType.secondary(aside.name), there), aside, there)
        except StoreError:
            aside.cleanup()
            raise
        try:
            store.catch_up()
        except StoreError as error:
            store.close_after(error)
            raise
        return store

    def catch_up(self) -> None:
        """Bring a secondary up to what the writer has written.

        Raises:
            StoreError: if the writer's files cannot be read.
        """
        try:
            self._db.try_catch_up_with_primary()
        except Exception as error:  # rocksdict raises bare Exception for every RocksDB status
            raise store_error("cannot follow", self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_after(error)

    def close_after(self, error: BaseException | None) -> None:
        """Close at the end of a block that ``error`` ended, if one did: that a failed disk fails again is no news."""
        with contextlib.suppress(*([] if error is None else [StoreError])):
            self.close()

    def close(self) -> None:
        """Write out and release the directory, whatever happens; idempotent.

        Raises:
            StoreError: if the disk refuses.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._secondary_dir is None:
                self.sync()
        finally:
            # The lock lives as long as any column-family handle does.
            self._family.clear()
            self._handle.clear()
            try:
                self._db.close()
            except Exception as error:  # rocksdict raises bare Exception for every RocksDB status
                raise store_error("cannot close", self.path, error) from error
            finally:
                if self._secondary_dir is not None:
                    self._secondary_dir.cleanup()

    def batch(self) -> Batch:
        """An empty batch for :meth:`write`."""
        return Batch(self._handle)

    def write(self, batch: Batch) -> None:
        """Apply a batch whole or not at all.

        It survives a crash of the process at once, and of the machine after the next :meth:`sync`.

        Raises:
            StoreError: if the disk refuses; nothing of the batch is applied.
        """
        try:
            self._db.write(batch.take(), self._write_options)
        except Exception as error:
            raise StoreError(
                f"cannot write to {self.path}: {error}; nothing of this batch was applied: free disk space or mend the "
                "disk, then start again"
            ) from error

    def sync(self) -> None:
        """Make everything written so far survive a power loss. Releases the interpreter while it waits.

        Raises:
            StoreError: if the disk refuses.
        """
        failpoint("wal.before")
        try:
            self._db.flush_wal(True)
        except Exception as error:
            raise StoreError(
                f"cannot sync {self.path}: {error}; free disk space or mend the disk, then start again"
            ) from error
        failpoint("wal.after")

    def source(self) -> dict[str, str]:
        """What tells the source the offsets belong to; empty if that was never stored.

        Raises:
            StoreCorruptError: if it does not decode.
        """
        value = self.get("meta", b"source")
        try:
            found = {} if value is None else orjson.loads(value)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise StoreCorruptError(f"the source of {self.path} does not decode; restore a checkpoint or replay")
        return {str(name): str(told) for name, told in found.items()}

    def refreshed(self) -> Refreshed | None:
        """How it was made of another store's items; None where it was not.

        Raises:
            StoreCorruptError: if it does not decode.
        """
        value = self.get("meta", b"refreshed")
        try:
            return None if value is None else Refreshed.model_validate_json(value)
        except ValidationError as error:
            raise StoreCorruptError(f"what {self.path} says of its refresh does not decode: {error}") from error

    def checkpoint(self, path: Path) -> None:
        """Make ``path`` a consistent copy of the store, hard links where RocksDB never changes a file again.

        Any thread may call it beside the writer, while the store stays open. What is in memory is flushed first.

        Raises:
            StoreError: if there is something at ``path``, or the disk refuses.
        """
        copy_db(self._db, [self._db, *self._family.values()], path)

    def get(self, family: str, key: bytes) -> bytes | None:
        """One value.

        Raises:
            StoreError: here and in all reading, if the disk fails or its bytes are damaged.
        """
        with self._reading(family):
            found: bytes | None = self._family[family].get(key)
        return found

    def get_many(self, family: str, wanted: list[bytes]) -> list[bytes | None]:
        """Values of many keys, None where absent."""
        family_get: Any = self._family[family].get  # its stub wants a list of a union, and list is invariant
        with self._reading(family):
            return list(family_get(wanted)) if wanted else []

    def scan(self, family: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Entries whose key starts with ``prefix``, in key order, as of the first.

        A family that the store lacks, being made by an older release, holds nothing.
        """
        if family not in self._family and family in keys.ADDED_LATER:
            return
        column: Any = self._family[family]
        last = prefix
        with self._reading(family):
            for key, value in column.items(from_key=prefix) if prefix else column.items():
                if not key.startswith(prefix):
                    return
                yield key, value
                last = key
            check_end(column, last)

    def scan_many(self, family: str) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """All entries of a family in key order, some thousand keys and their values at a time."""
        column: Any = self._family[family]
        with self._reading(family):
            rows, last = column.items(), b""
            while flat := list(chain.from_iterable(islice(rows, _AT_ONCE))):
                yield flat[::2], flat[1::2]
                last = flat[-2]
            check_end(column, last)

    def scan_values(self, family: str, ordinals: npt.NDArray[np.integer]) -> Iterator[list[bytes]]:
        """All values of a family whose keys are these ordinals, ascending, some thousand at a time.

        Where these are all from 0 on, a key is looked at as often, not each, as a tenth of the time is in making keys:
        so many keys up to the last can't be others. Where some are left out each is, as one of those might be there in
        place of another, and every value between the two would be taken for its neighbour's.

        Raises:
            StoreCorruptError: if there are others, or fewer.
        """
        if len(ordinals) and ordinals[-1] >= len(ordinals):
            yield from self._scan_each(family, ordinals)
            return
        column: Any = self._family[family]
        with self._reading(family):
            rows, at, first, last = column.values(), column.iter(), 0, b""
            while values := list(islice(rows, _AT_ONCE)):
                first += len(values)
                last = keys.U64.pack(ordinals[first - 1]) if first <= len(ordinals) else b""
                at.seek(last)
                if not at.valid():
                    at.status()
                if not at.valid() or at.key() != last or at.value() != values[-1]:
                    raise self._not_as_counted(family, len(ordinals))
                yield values
            check_end(column, last)
            if first < len(ordinals):
                raise self._not_as_counted(family, len(ordinals))

    def _scan_each(self, family: str, ordinals: npt.NDArray[np.integer]) -> Iterator[list[bytes]]:
        first = 0
        for many_keys, values in self.scan_many(family):
            wanted = ordinals[first : first + len(values)]
            if b"".join(many_keys) != wanted.astype(">u8").tobytes():
                raise self._not_as_counted(family, len(ordinals))
            first += len(values)
            yield values
        if first < len(ordinals):
            raise self._not_as_counted(family, len(ordinals))

    def _not_as_counted(self, family: str, wanted: int) -> StoreCorruptError:
        return StoreCorruptError(
            f"{self.path} is damaged: {family} does not hold the {wanted} records that were counted: a file of it is "
            "missing or was cut; restore a checkpoint or replay"
        )

    def most(self, family: str) -> int:
        """No more keys than this are in a family, by what RocksDB notes of each table; reads none of them."""
        with self._reading(family):
            return entries_put(self._family[family])

    def scan_keys(self, family: str, prefix: bytes = b"") -> Iterator[bytes]:
        """As :meth:`scan`, keys alone."""
        column: Any = self._family[family]
        last = prefix
        with self._reading(family):
            for key in column.keys(from_key=prefix) if prefix else column.keys():
                if not key.startswith(prefix):
                    return
                yield key
                last = key
            check_end(column, last)

    def newest(self, family: str) -> tuple[bytes, bytes] | None:
        """The entry with the greatest key."""
        column: Any = self._family[family]
        with self._reading(family):
            rows = column.iter()
            rows.seek_to_last()
            if rows.valid():
                return rows.key(), rows.value()
            rows.status()
        return None

    @contextmanager
    def _reading(self, family: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # rocksdict raises bare Exception for every RocksDB status
            raise store_error(f"cannot read {family} in", self.path, error) from error

    def meta(self) -> StoreMeta:
        """What the store was made for."""
        value = self.get("meta", b"store")
        if value is None:
            raise StoreCorruptError(f"{self.path} lacks its description; it is not a facetstream store")
        _check_version(value, self.path)
        try:
            return StoreMeta.model_validate_json(value)
        except ValidationError as error:
            raise StoreCorruptError(f"the description of {self.path} does not decode: {error}") from error

    def totals(self) -> Totals:
        """The running totals."""
        value = self.get("meta", b"totals")
        if value is None:
            raise StoreCorruptError(f"{self.path} lacks its totals; restore it from a checkpoint or replay it")
        try:
            return Totals.model_validate_json(value)
        except ValidationError as error:
            raise StoreCorruptError(f"the totals of {self.path} do not decode: {error}") from error

    def begin_history(self) -> None:
        """What follows may number things otherwise than what followed in the store that this is a copy of.

        Raises:
            StoreError: if the disk refuses.
        """
        write = self.batch()
        write.totals(self.totals().model_copy(update={"history": secrets.token_hex(8)}))
        self.write(write)
        self.sync()

    def labels(self) -> LabelTable:
        """All sets of labels by number."""
        return table_of((keys.u32(key, "labels"), value) for key, value in self.scan("labels"))

    def label(self, number: int) -> Labels:
        """One set of labels.

        Raises:
            StoreCorruptError: if it is not there.
        """
        return decode(self.get("labels", keys.U32.pack(number)) or b"") if number else UNLABELLED

    def offsets(self) -> dict[str, int]:
        """Partition name -> next offset to apply."""
        return {key.decode(): keys.u64(value, "offsets") for key, value in self.scan("offsets")}

    def vectors(self, ordinals: npt.NDArray[np.integer], facets: int, dim: int) -> npt.NDArray[np.float16]:
        """(n, F, d) float16 of n ordinals; zeros where there is none."""
        out = np.zeros((len(ordinals), facets, dim), np.float16)
        for row, value in enumerate(self.get_many("vectors", keys.ordinal_keys(ordinals))):
            if value is not None:
                if len(value) != out[row].nbytes:
                    raise keys.undecodable("vectors", value)
                out[row] = np.frombuffer(value, np.float16).reshape(facets, dim)
        return out

    def size_on_disk(self) -> int:
        """Bytes of the directory."""
        return sum(map(_file_size, self.path.iterdir()))


def is_there(path: Path) -> bool:
    """Whether a directory holds a store.

    Raises:
        StoreCorruptError: if it holds a store's data without ``CURRENT``; RocksDB would begin anew and remove them.
    """
    if (path / "CURRENT").exists():
        return True
    if any(path.glob("*.sst")) or any(map(_file_size, path.glob("*.log"))):
        raise StoreCorruptError(
            f"{path} is damaged: it holds data, but CURRENT is missing; it was left as it is: restore a checkpoint or "
            "move it away and replay"
        )
    return False


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # a writer beside us replaced it
        return 0


def _describe(store: Store, meta: StoreMeta) -> Store:
    """Make an empty RocksDB directory a store; it is closed if that fails."""
    batch = store.batch()
    batch.put("meta", b"store", meta.model_dump_json().encode())
    batch.totals(Totals(next_leaf=[0] * meta.facets, history=secrets.token_hex(8)))
    try:
        store.write(batch)
        store.sync()
    except StoreError as error:
        store.close_after(error)
        raise
    return store


def check_meta(found: StoreMeta, wanted: StoreMeta, path: Path) -> None:
    """Refuse a store made for something else.

    Raises:
        StoreMismatchError: naming every field that differs.
    """
    ignored = {"created_at_ms", "model_name", "model_version", "generation"}
    differing = [
        f"{name}: store has {getattr(found, name)!r}, wanted {getattr(wanted, name)!r}"
        for name in StoreMeta.model_fields
        if name not in ignored and getattr(found, name) != getattr(wanted, name)
    ]
    if differing:
        raise StoreMismatchError(
            f"{path} (generation {found.generation}) was built with another model or configuration: "
            f"{'; '.join(differing)}. Give the artifact it was built with, or build a new index in another --data-dir"
        )


def now_ms() -> int:
    """Wall clock, epoch milliseconds."""
    return time.time_ns() // 1_000_000


def _check_version(description: bytes, path: Path) -> None:
    with contextlib.suppress(ValueError, TypeError, KeyError):  # what does not decode is told with the rest
        found = orjson.loads(description)["format_version"]
        if found != FORMAT_VERSION:
            raise StoreMismatchError(
                f"{path} is of format {found}, this program reads {FORMAT_VERSION}; replay the events into a new data "
                "directory or generation"
            )
