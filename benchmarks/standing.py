"""Processes of the memory and recovery benchmarks: a store that was filled before, opened and looked at."""

from __future__ import annotations

import gc
import resource
import time
from pathlib import Path
from typing import Any

from rocksdict import BottommostLevelCompaction, CompactOptions

from benchmarks.apart import Answer
from indexer.store import Store, store_path
from schemas.config import Config
from streamer.generations import current_generation, load_model, open_index
from streamer.verification import verify_shards

_PAGE = resource.getpagesize()


def opened(*, config: dict[str, Any], check: bool = False) -> Answer:
    """Open an index as a daemon does at its start.

    Returns:
        ``seconds`` it took; ``items``; ``resident``, bytes by which the process grew; ``arrays``, bytes of the live
        view's arrays; ``ids``, bytes of the ids and their table; with ``check`` also ``verify``.
    """
    found = Config.model_validate(config)
    model = load_model(found)
    gc.collect()
    before, began = _resident(), time.monotonic()
    with open_index(found, model) as index:
        seconds, view = time.monotonic() - began, index.view
        gc.collect()
        answer: Answer = {
            "seconds": seconds,
            "items": view.totals.items_live,
            "engagements": view.totals.engagements_applied,
            "resident": _resident() - before,
            "arrays": view.nbytes - view.ids.nbytes,
            "ids": view.ids.nbytes,
        }
        if check:
            answer["verify"] = verify_shards({0: index.store}, model).model_dump(mode="json")
    return answer


def compacted(*, config: dict[str, Any]) -> Answer:
    """Have RocksDB compact a store whole.

    Returns:
        ``before`` and ``after``, bytes of the directory; ``families``, bytes of the table files of each afterwards;
        ``seconds`` it took.
    """
    found = Config.model_validate(config)
    path = store_path(found.data_dir, current_generation(found.data_dir))
    before = _size(path)
    with Store.open(path) as store:
        began = time.monotonic()
        sizes: dict[str, int] = {}
        options = CompactOptions()
        options.set_bottommost_level_compaction(BottommostLevelCompaction.force())
        for name, family in store._family.items():  # noqa: SLF001  # the store has no use for it, RocksDB sees to it
            family.flush()
            family.compact_range(None, None, options)
            sizes[name] = int(family.property_int_value("rocksdb.live-sst-files-size") or 0)
        seconds = time.monotonic() - began
    return {"before": before, "after": _size(path), "families": sizes, "seconds": seconds}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
