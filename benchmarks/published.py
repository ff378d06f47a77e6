"""The process of the snapshots benchmark: an index, its publisher and a reader."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.apart import Answer, settle_heap
from benchmarks.report import Result
from indexer.batch import EngagementRows, EventBatch, ItemRows, empty_engagements, empty_items
from indexer.index import Index
from indexer.retrieval.readers import IndexReader, ViewReader
from indexer.retrieval.retrieve import retrieve
from indexer.snapshots import Publisher, SnapshotFollower, target_at
from schemas.config import Config, RetrievalConfig
from schemas.store import StoreMeta

_FACETS: Final = 3
_LAYERS: Final = 2
_CODEWORDS: Final = 256
_DIM: Final = 64
_BATCH: Final = 4_096
_DELTAS: Final = 40
_FULLS: Final = 3
_REQUESTS: Final = 200
_NOW_MS: Final = 1_500_000_000_000


class _Load:
    """An index that grows by random items and engagements."""

    def __init__(self, folder: Path) -> None:
        self.dice = np.random.default_rng(0)
        config = Config()
        meta = StoreMeta(
            generation="g000001",
            model_name="none",
            model_version="1",
            model_hash="0" * 64,
            codebook_hash="0" * 64,
            facets=_FACETS,
            layers=_LAYERS,
            codewords=_CODEWORDS,
            dim=_DIM,
            half_lives_s=config.counters.half_lives_s,
            created_at_ms=0,
        )
        words = self.dice.standard_normal((_FACETS, _LAYERS, _CODEWORDS, _DIM)).astype(np.float32)
        folder.mkdir(parents=True)
        self.index = Index.open(folder / "store", meta, words, config)
        self.items = self.engagements = 0

    def add_items(self, n: int) -> None:
        at = np.arange(self.items, self.items + n)
        raw = self.dice.integers(0, _CODEWORDS**_LAYERS, (n, _FACETS)).astype(np.uint32)
        vectors = self.dice.standard_normal((n, _FACETS, _DIM)).astype(np.float16)
        rows = ItemRows(
            [_name(each) for each in at.tolist()],
            _NOW_MS + at,
            ["items-0"] * n,
            at,
            np.arange(n),
            vectors,
            raw,
            [b""] * n,
        )
        self.items += n
        self.index.writer.apply(EventBatch(rows, empty_engagements(), {"items-0": self.items}))

    def add_engagements(self, n: int) -> None:
        at = np.arange(self.engagements, self.engagements + n)
        names = [_name(each) for each in self.dice.integers(0, self.items, n).tolist()]
        sources = ["engagements-0"] * n
        rows = EngagementRows(names, ["click"] * n, _NOW_MS + at, np.full(n, np.nan), sources, at, [b""] * n)
        self.engagements += n
        positions = {"engagements-0": self.engagements}
        self.index.writer.apply(EventBatch(empty_items(_FACETS, _DIM), rows, positions))


def measure(*, folder: str, items: int, changes: int) -> Answer:
    """Publish, follow and answer.

    Returns:
        ``measures``: name -> unit, values.
    """
    load = _Load(Path(folder))
    for first in range(0, items, _BATCH):
        load.add_items(min(_BATCH, items - first))
    settle_heap()
    url = str(Path(folder) / "snapshots")
    held: list[float] = []
    target = target_at(url)
    publisher = Publisher(load.index.view, 0, target, 2)
    out: dict[str, tuple[str, list[float]]] = {}

    def add(name: str, value: float, unit: str = "ms") -> None:
        out.setdefault(name, (unit, []))[1].append(value)

    for _ in range(_FULLS):
        add("full snapshot", _ms(publisher.full))
        add("full snapshot: held", publisher.held_s * 1e3)
        assert publisher.current is not None
        add("full snapshot: bytes per item", publisher.current.size / items, "B")
        add("peer: its bytes written and hashed", _ms(lambda: _floor(Path(folder) / "floor", publisher)))
    follower = SnapshotFollower(url)
    add("full snapshot: opened, checksums compared", _ms(follower.refresh))
    add("full snapshot: opened", _ms(SnapshotFollower(url, verify=False).refresh))

    published, shown = [], []
    for _ in range(_DELTAS):
        load.add_items(changes // 2)
        load.add_engagements(changes - changes // 2)
        published.append(_ms(publisher.delta))
        held.append(publisher.held_s * 1e3)
        shown.append(_ms(follower.refresh))
    add("refresh without news", _ms(follower.refresh))
    for name, values in (("delta", published), ("delta: held", held), ("delta: shown by a reader", shown)):
        add(f"{name}, p50", float(np.percentile(values, 50)))
        add(f"{name}, p99", float(np.percentile(values, 99)))
    delta = follower.readers[0].at
    rows = _DELTAS * changes
    add("delta: bytes per change, all of them", delta.size / rows, "B")
    for name, reader in (("snapshot", follower.readers[0]), ("live view", ViewReader(load.index.view))):
        times = _requests(reader, items)
        add(f"request: {name}, p50", float(np.percentile(times, 50)))
        add(f"request: {name}, p99", float(np.percentile(times, 99)))
    load.index.close()
    return {"measures": out}


def worst(result: Result) -> float:
    """Milliseconds from a change to its being shown by a reader that refreshes at once, at the 99th percentile."""
    return result.median("delta, p99") + result.median("delta: shown by a reader, p99")


def _requests(reader: IndexReader, items: int) -> list[float]:
    dice = np.random.default_rng(1)
    triggers = [[_name(each) for each in dice.integers(0, items, 5).tolist()] for _ in range(_REQUESTS)]
    return [_ms(lambda asked=asked: retrieve(reader, asked, RetrievalConfig(), _NOW_MS)) for asked in triggers]  # type: ignore[misc]


def _floor(path: Path, publisher: Publisher) -> None:
    assert publisher.current is not None
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(-(-publisher.current.size // len(block))):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def _ms(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1e3


def _name(number: int) -> str:
    return f"item-{number:09d}"
