"""One atomic write in the making."""

from __future__ import annotations

import time
from collections import deque
from itertools import repeat
from typing import Any, Final

import orjson
from rocksdict import WriteBatch

from indexer import keys
from schemas.store import Totals

_JOURNAL_KEPT: Final = 10_000

_run = deque[None](maxlen=0).extend  # calls all of a ``map`` without a loop in Python


class Batch:
    """One atomic write in the making. Single use."""

    def __init__(self, handles: dict[str, Any]) -> None:
        self._handles = handles
        self._batch = WriteBatch(raw_mode=True)

    def put(self, family: str, key: bytes, value: bytes) -> None:
        """Set one entry."""
        self._batch.put(key, value, self._handles[family])

    def put_many(self, family: str, many_keys: list[bytes], values: list[bytes]) -> None:
        """Set many entries of one family."""
        if len(many_keys) != len(values):
            raise ValueError(f"{len(many_keys)} keys but {len(values)} values for {family}")
        _run(map(self._batch.put, many_keys, values, repeat(self._handles[family])))

    def put_empty(self, family: str, many_keys: list[bytes]) -> None:
        """Set many entries that are all key."""
        _run(map(self._batch.put, many_keys, repeat(b""), repeat(self._handles[family])))

    def delete_many(self, family: str, many_keys: list[bytes]) -> None:
        """Remove many entries of one family."""
        _run(map(self._batch.delete, many_keys, repeat(self._handles[family])))

    def totals(self, totals: Totals) -> None:
        """Set the running totals."""
        self.put("meta", b"totals", totals.model_dump_json().encode())

    def offset(self, partition: str, next_offset: int) -> None:
        """Set a partition's next offset."""
        self.put("offsets", partition.encode(), keys.U64.pack(next_offset))

    def journal(self, sequence: int, entry: bytes) -> None:
        """Append a journal entry; the oldest beyond the kept number goes."""
        self.put("journal", keys.U64.pack(sequence), entry)
        if sequence >= _JOURNAL_KEPT:
            self.delete_many("journal", [keys.U64.pack(sequence - _JOURNAL_KEPT)])

    def note(self, totals: Totals, **entry: Any) -> None:
        """Append a journal entry with its number and the time, counted in ``totals``."""
        at_ms = time.time_ns() // 1_000_000
        self.journal(totals.journal_seq, orjson.dumps({"seq": totals.journal_seq, "at_ms": at_ms, **entry}))
        totals.journal_seq += 1

    def take(self) -> WriteBatch:
        """The batch itself, to be written once."""
        taken, self._batch = self._batch, WriteBatch(raw_mode=True)
        return taken
