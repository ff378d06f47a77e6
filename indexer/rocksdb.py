"""RocksDB as this project uses it: options, opening, and its errors as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rocksdict import AccessType, DBCompressionType, Options, Rdict

from indexer import keys
from schemas.errors import StoreCorruptError, StoreError, StoreLockedError

_LOCK_WORDS: Final = ("lock hold by current process", "While lock file")
_WRITE_BUFFER: Final = 32 << 20


def options(*, compress: bool = False) -> Options:
    """Of one column family."""
    made = Options(raw_mode=True)
    made.create_if_missing(True)
    made.create_missing_column_families(True)
    made.set_write_buffer_size(_WRITE_BUFFER)
    made.set_max_background_jobs(2)
    made.set_keep_log_file_num(4)
    made.set_max_total_wal_size(256 << 20)
    made.set_compression_type(DBCompressionType.lz4() if compress else DBCompressionType.none())
    return made


def families() -> dict[str, Options]:
    """Options of all column families."""
    # Vectors are near-random bits; everything else is text or counters and shrinks well.
    return {name: options(compress=name != "vectors") for name in keys.FAMILIES}


def open_db(path: Path, access: AccessType) -> Rdict:
    """Open the database at ``path``.

    Raises:
        StoreLockedError: if another process writes to it.
        StoreError: if it cannot be opened.
    """
    try:
        return Rdict(str(path), options(), families(), access)
    except Exception as error:  # rocksdict raises bare Exception for every RocksDB status
        raise store_error("cannot open", path, error) from error


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
