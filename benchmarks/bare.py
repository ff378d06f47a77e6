"""The peer of ingestion: the same work without the guarantees, as directly as it can be written.

Poll, parse (pydantic), encode and assign, put into RocksDB: the same record bytes in the same column families with the
same options, in batches of the same size. An item becomes its record, id, vectors, content and one posting in each
facet, in the leaf that its raw index names. An engagement is added to the counters of its item, held in arrays; the
counters record is put.

Left out is what makes it trustworthy: source offsets and totals in the batch, syncing the write-ahead log, dead
letters, checks of size, time and key, duplicates and late events, deletes, waiting engagements, alignment in event
time, the live view, leaf sizes, routes and rebalancing. A record it does not like ends it.

With two threads one polls, parses and encodes while the other puts, as in the pipeline; with one there is no hand-over.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.apart import Answer, settle_heap
from indexer import keys
from indexer.counters import CounterRows, add_engagements
from indexer.store import Store
from model_runtime.runtime import Encoded, FrozenModel
from schemas.config import Config
from schemas.events import ENGAGEMENT, ITEM_EVENT, Engagement, ItemCreated
from streamer.generations import store_meta
from streamer.opening import open_source
from streamer.sources.base import Records, Source, Stream

_QUEUED: Final = 4
_KINDS: Final = 2  # of the load


def ingest(*, phases: Sequence[dict[str, Any]], threads: int) -> Answer:
    """Read each phase's source to its end into a new store.

    Args:
        phases: configurations, as :func:`benchmarks.whole.settings` makes them; the store's place is the first's.
        threads: 1 or 2.

    Returns:
        ``phases``: ``records``, ``applied_s`` and ``cpu_to_applied_s`` of each.
    """
    configs = [Config.model_validate(phase) for phase in phases]
    first = configs[0]
    model = FrozenModel.load(first.model.path, threads=first.model.threads)
    meta = store_meta(model, "bare", first.counters.half_lives_s)
    read: dict[str, int] = {}
    answer: Answer = {"phases": []}
    with Store.create(Path(first.data_dir) / "bare", meta) as store:
        bare = _Bare(store, model, first.counters.half_lives_s)
        for config in configs:
            source = open_source(config, follow=False)
            ends = source.end_offsets()
            source.seek({partition: read.get(str(partition), 0) for partition in ends})
            total = sum(end - read.get(str(partition), 0) for partition, end in ends.items())
            settle_heap()
            cpu, start = time.process_time(), time.monotonic()
            (bare.run_in_two if threads == 2 else bare.run_in_one)(source, total, config.source.max_poll_records)
            seconds = time.monotonic() - start
            cpu = time.process_time() - cpu
            answer["phases"].append({"records": total, "applied_s": seconds, "cpu_to_applied_s": cpu})
            read |= {str(partition): end for partition, end in ends.items()}
            source.close()
    return answer


class _Bare:
    def __init__(self, store: Store, model: FrozenModel, half_lives_s: tuple[int, ...]) -> None:
        self._store = store
        self._model = model
        self._half_lives_s = half_lives_s
        self._ordinals: dict[str, int] = {}
        self._kinds: dict[str, int] = {}
        self._counters = self._zeros(0)

    def run_in_one(self, source: Source, total: int, at_once: int) -> None:
        for records in _polled(source, total, at_once):
            self._put(records, *self._parse(records))

    def run_in_two(self, source: Source, total: int, at_once: int) -> None:
        handed: queue.Queue[tuple[Records, list[Any], Encoded | None] | None] = queue.Queue(_QUEUED)
        failed: list[BaseException] = []

        def read() -> None:
            try:
                for records in _polled(source, total, at_once):
                    handed.put((records, *self._parse(records)))
            except BaseException as error:  # noqa: BLE001  # raised on the other thread
                failed.append(error)
            finally:
                handed.put(None)

        reader = threading.Thread(target=read)
        reader.start()
        while (batch := handed.get()) is not None:
            self._put(*batch)
        reader.join()
        if failed:
            raise failed[0]

    def _parse(self, records: Records) -> tuple[list[Any], Encoded | None]:
        if records.partition.stream is Stream.ENGAGEMENTS:
            return [ENGAGEMENT.validate_json(value) for value in records.values if value], None
        events = [ITEM_EVENT.validate_json(value) for value in records.values if value]
        return events, self._model.encode(events)  # type: ignore[arg-type]  # the load has no deletes

    def _put(self, records: Records, events: list[Any], encoded: Encoded | None) -> None:
        if encoded is None:
            self._put_engagements(events)
        else:
            self._put_items(records, events, encoded)

    def _put_items(self, records: Records, events: list[ItemCreated], encoded: Encoded) -> None:
        n, facets = encoded.raw.shape
        ordinals = np.arange(len(self._ordinals), len(self._ordinals) + n)
        ids = [event.item_id for event in events]
        self._ordinals.update(zip(ids, ordinals.tolist(), strict=True))
        times = np.array([event.occurred_at for event in events], np.int64)
        offsets = np.array(records.offsets, np.int64)
        one, zero = np.ones(n, np.uint8), np.zeros(n, np.uint16)
        write, its_keys = self._store.batch(), keys.ordinal_keys(ordinals)
        write.put_many(
            "items", its_keys, keys.item_values(one, zero, zero, times, times, offsets, encoded.raw, encoded.raw, ids)
        )
        write.put_many("ids", [item_id.encode() for item_id in ids], its_keys)
        joined = encoded.vectors.tobytes()
        width = len(joined) // max(1, n)
        write.put_many("vectors", its_keys, [joined[at : at + width] for at in range(0, len(joined), width)])
        write.put_many("content", its_keys, [value for value in records.values if value])
        for facet in range(facets):
            write.put_empty("postings", keys.posting_keys(facet, encoded.raw[:, facet], ordinals))
        self._store.write(write)

    def _put_engagements(self, events: list[Engagement]) -> None:
        ordinal_of, kinds = self._ordinals, self._kinds
        ordinals = np.array([ordinal_of[event.item_id] for event in events], np.int64)
        kind = np.array([kinds.setdefault(event.kind, len(kinds)) for event in events], np.int64)
        times = np.array([event.occurred_at for event in events], np.int64)
        values = np.array([np.nan if event.value is None else event.value for event in events], np.float64)
        touched, row_of = np.unique(ordinals, return_inverse=True)
        counters = self._counters
        if len(counters.last_at) < len(ordinal_of):
            counters = self._counters = self._grown(len(ordinal_of))
        before = CounterRows(*(column[touched] for column in _columns(counters)))
        after = add_engagements(before, row_of, kind, times, values, self._half_lives_s)
        packed = np.empty(len(touched), keys.stats_dtype(len(self._half_lives_s), _KINDS))
        packed["counts"], packed["epochs"], packed["decayed"] = after.counts, after.epochs, after.decayed
        packed["value_sum"], packed["last_at"] = after.value_sum, after.last_at
        for column, now in zip(_columns(counters), _columns(after), strict=True):
            column[touched] = now
        joined, width = packed.tobytes(), packed.dtype.itemsize
        write = self._store.batch()
        write.put_many(
            "stats", keys.ordinal_keys(touched), [joined[at : at + width] for at in range(0, len(joined), width)]
        )
        self._store.write(write)

    def _zeros(self, rows: int) -> CounterRows:
        windows = len(self._half_lives_s)
        return CounterRows(
            np.zeros((rows, _KINDS), np.uint32),
            np.zeros((rows, windows), np.int32),
            np.zeros((rows, windows)),
            np.zeros(rows),
            np.zeros(rows, np.int64),
        )

    def _grown(self, rows: int) -> CounterRows:
        grown = self._zeros(2 * rows)
        for column, old in zip(_columns(grown), _columns(self._counters), strict=True):
            column[: len(old)] = old
        return grown


def _columns(rows: CounterRows) -> tuple[npt.NDArray[Any], ...]:
    return rows.counts, rows.epochs, rows.decayed, rows.value_sum, rows.last_at


def _polled(source: Source, total: int, at_once: int) -> Iterator[Records]:
    left = total
    while left > 0:
        for records in source.poll(at_once, 1.0):
            left -= len(records)
            if len(records):
                yield records
