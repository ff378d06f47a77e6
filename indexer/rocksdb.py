"""RocksDB as this project uses it: options, opening, and its errors as ours."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rocksdict import AccessType, BlockBasedOptions, Cache, Checkpoint, DBCompressionType, Options, Rdict

from indexer import keys
from schemas.errors import StoreCorruptError, StoreError, StoreLockedError

_LOCK_WORDS: Final = ("lock hold by current process", "While lock file")
_WRITE_BUFFER: Final = 32 << 20
_LOGS: Final = 256 << 20
_BLOCK_CACHE: Final = 16 << 20
_FLUSH_S: Final = 30.0
_NOTED: Final = re.compile(r"# (entries|deletions)=(\d+);")
_DROPPED: Final = re.compile(r"/([^/\s]+\.log): dropping (\d+) bytes; (.*)")


def options(cache: Cache | None = None, *, compress: bool = False) -> Options:
    """Of one column family; ``cache`` holds blocks of all that share it."""
    made = Options(raw_mode=True)
    made.create_if_missing(True)
    made.create_missing_column_families(True)
    made.set_write_buffer_size(_WRITE_BUFFER)
    made.set_max_background_jobs(2)
    made.set_keep_log_file_num(4)
    made.set_max_total_wal_size(_LOGS)
    made.set_compression_type(DBCompressionType.lz4() if compress else DBCompressionType.none())
    if cache is not None:
        tables = BlockBasedOptions()
        tables.set_block_cache(cache)
        made.set_block_based_table_factory(tables)
    return made


def families(names: Sequence[str] = keys.FAMILIES) -> dict[str, Options]:
    """Options of column families."""
    cache = Cache(_BLOCK_CACHE)  # else each family takes 32 MB of its own
    # Vectors are near-random bits; everything else is text or counters and shrinks well.
    return {name: options(cache, compress=name != "vectors") for name in names}


def existing_families(path: Path) -> tuple[str, ...]:
    """All of ours, less those that came later and that the database at ``path`` lacks, as an older release made it.

    Opening for writing makes the missing ones, opening beside a writer cannot. That any other is missing is damage,
    which opening tells.

    Raises:
        StoreError: if it cannot be read.
    """
    try:
        there = set(Rdict.list_cf(str(path), options()))
    except Exception as error:  # rocksdict raises bare Exception for every RocksDB status
        raise store_error("cannot open", path, error) from error
    return tuple(name for name in keys.FAMILIES if name in there or name not in keys.ADDED_LATER)


def open_db(path: Path, access: AccessType, names: Sequence[str] = keys.FAMILIES) -> Rdict:
    """Open the database at ``path`` with the families ``names``.

    Raises:
        StoreLockedError: if another process writes to it.
        StoreError: if it cannot be opened.
    """
    try:
        return Rdict(str(path), options(), families(names), access)
    except Exception as error:  # rocksdict raises bare Exception for every RocksDB status
        raise store_error("cannot open", path, error) from error


def empty_families(path: Path, names: Sequence[str]) -> None:
    """Remove all entries of some families of a database that nobody has open, whatever their number.

    Raises:
        StoreError: if it cannot be opened or written.
    """
    db = open_db(path, AccessType.read_write())
    try:
        for name, made in families(names).items():
            db.drop_column_family(name)
            db.create_column_family(name, made)
    except Exception as error:  # rocksdict raises bare Exception for every RocksDB status
        raise store_error(f"cannot empty {', '.join(names)} of", path, error) from error
    finally:
        db.close()


def store_error(doing: str, path: Path, error: Exception) -> StoreError:
    """Our error for one of RocksDB's, which rocksdict raises as bare ``Exception``."""
    text = str(error)
    if any(word in text for word in _LOCK_WORDS):
        return StoreLockedError(
            f"{path} is held by another process, most likely a running daemon; stop it, or use a reading command"
        )
    if "Corruption" in text:
        return StoreCorruptError(f"{path} is damaged: {text}; it was left as it is: restore a checkpoint or replay")
    return StoreError(f"{doing} {path}: {text}")


def copy_db(db: Rdict, columns: list[Rdict], path: Path) -> None:
    """Make ``path`` a copy of the database at one moment; ``columns`` are all its families.

    Raises:
        StoreError: if there is something at ``path``, or the disk refuses.
    """
    try:
        _flush_behind(columns)
        Checkpoint(db).create_checkpoint(str(path))
    except Exception as error:  # rocksdict raises bare Exception for every RocksDB status
        raise store_error(f"cannot copy {db.path()} to", path, error) from error


def _flush_behind(columns: list[Rdict]) -> None:
    """Let RocksDB's own threads write what is in memory.

    A checkpoint would do so by itself, but with the interpreter held: 0.3 s for 150 MB, in which no thread moves.
    """
    for column in columns:
        column.flush(wait=False)
    deadline = time.monotonic() + _FLUSH_S
    while time.monotonic() < deadline and not columns[0].property_int_value("rocksdb.background-errors"):
        if not any(column.property_int_value("rocksdb.num-immutable-mem-table") for column in columns):
            return
        time.sleep(0.002)


def check_manifest(path: Path) -> None:
    """Raise if the file that lists a database's tables has gone: RocksDB says no more than that a file is missing.

    Raises:
        StoreCorruptError: naming it.
    """
    try:
        named = (path / "CURRENT").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return  # RocksDB tells
    if named.startswith("MANIFEST-") and not (path / named).exists():
        raise StoreCorruptError(
            f"{path} is damaged: {named} is missing; it was left as it is: restore a checkpoint or replay"
        )


def dropped_from_log(path: Path) -> list[tuple[str, int, str]]:
    """(file, bytes, why) of each piece of the write-ahead log that the opening just now could not read.

    What follows such a piece is dropped too, offsets among it, so it is read from the source again. After a power loss
    that is the torn end; anywhere else the disk is failing. RocksDB tells only its diary.
    """
    try:
        diary = (path / "LOG").read_text(errors="replace")
    except OSError:
        return []
    return [(name, int(size), why) for name, size, why in _DROPPED.findall(diary)]


def check_end(column: Any, last: bytes) -> None:
    """Raise if a scan that returned ``last`` ended there for another reason than that nothing follows.

    rocksdict's own iterators end without a word at a block that is damaged; a view loaded from half of the items
    would pass for a small index.
    """
    rows = column.iter()
    rows.seek(last)
    if rows.valid() and rows.key() == last:
        rows.next()
    if not rows.valid():
        rows.status()


def entries_put(column: Any) -> int:
    """How often keys were put into a family, as far as it is not compacted away: at least once for each that is there.

    Memory is asked before the tables, so that what is just being flushed counts twice rather than not at all.
    """
    put = 0
    for name in ("active-mem-table", "imm-mem-tables"):
        put += column.property_int_value(f"rocksdb.num-entries-{name}") or 0
        put -= column.property_int_value(f"rocksdb.num-deletes-{name}") or 0
    tables = dict(_NOTED.findall(column.property_value("rocksdb.aggregated-table-properties") or ""))
    return put + int(tables.get("entries", 0)) - int(tables.get("deletions", 0))
