"""Every compiled kernel called once, so that no batch and no request waits for a compiler.

numba compiles a kernel for the kinds of arrays it is first called with, and keeps the result on disk: some twenty
seconds of one core at the first start on a machine, a third of a second later on. Which arrays those are is known to
the code that calls the kernels: a store of a few made-up items is filled, rebalanced, reopened and asked.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.batch import EngagementRows, EventBatch, ItemRows
from indexer.failpoints import no_failpoints
from indexer.ids import Ids
from indexer.index import Index
from indexer.keys import ItemState
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import retrieve_many
from schemas.config import Config
from schemas.prior import LearnedPrior
from schemas.store import StoreMeta

I64 = npt.NDArray[np.int64]

_ITEMS: Final = 64
_BOUNDS: Final = {"low": 4, "high": 16}
_PRIOR: Final = LearnedPrior(windows=(0,), widths=(2, 1), parameters=(1.0, -1.0), temperature=1.0)


def warm_up(facets: int = 3, dim: int = 64) -> float:
    """Call every kernel; returns the seconds it took."""
    began = time.monotonic()
    meta = StoreMeta(
        generation="warm", model_name="warm", model_version="0", model_hash="", codebook_hash="",
        facets=facets, layers=2, codewords=4, dim=dim, half_lives_s=(60, 3_600), prior=_PRIOR,
        created_at_ms=0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    codewords = rng.standard_normal((facets, 2, 4, dim)).astype(np.float32)
    vectors = rng.standard_normal((_ITEMS, facets, dim)).astype(np.float16)
    config = Config.model_validate({"rebalance": _BOUNDS})
    with no_failpoints(), tempfile.TemporaryDirectory(prefix="facetstream-warm-") as folder:
        path = Path(folder, "store")
        with Index.open(path, meta, codewords, config) as index:
            every = np.arange(_ITEMS)
            raw = rng.integers(0, 2, (_ITEMS, facets)).astype(np.uint32)
            index.writer.apply(_batch(every, every, vectors, raw, offset=0))
            index.compactor(config).run_until_idle()
            # an update that moves, one that stays, a delete
            some = np.arange(3)
            index.writer.apply(_batch(some, np.array([0, 1, -1]), vectors[1:3], raw[[5, 1]], offset=_ITEMS))
            for ordinals in (np.arange(3, _ITEMS // 2), np.arange(_ITEMS // 2, _ITEMS)):
                gone = np.full(len(ordinals), -1)
                index.writer.apply(_batch(ordinals, gone, vectors[:0], raw[:0], offset=_ITEMS + int(ordinals[0])))
            index.compactor(config).run_until_idle()
            index.view.members.squeeze()
        with Index.open(path, meta, codewords, config) as index:
            index.writer.apply(_batch(every, every, vectors, raw, offset=2 * _ITEMS))
            view, reader = index.view, ViewReader(index.view)
            view.members.embeddings(
                view.items["leaf"], view.items["state"] == ItemState.LIVE, every
            )  # what deltas hold
            cold = Request([], vectors=vectors[:1].astype(np.float32), raws=raw[:1])
            for request in (Request([_name(1)]), Request([_name(1)], exclude=[_name(5)], max_age_s=1.0), cold):
                for selection in ("top", "multinomial"):
                    settings = config.retrieval.model_copy(update={"selection": selection})
                    retrieve_many(reader, [request], settings, _ITEMS)
                retrieve_many(reader, [request], config.retrieval.model_copy(update={"hot_share": 0.5}), _ITEMS)
    Ids().add([b"%d" % number for number in range(1_000)])  # a table has to grow
    return time.monotonic() - began


def _name(number: int) -> str:
    return f"warm-{number}"


def _batch(
    numbers: I64, encoded: I64, vectors: npt.NDArray[np.float16], raw: npt.NDArray[np.uint32], offset: int
) -> EventBatch:
    names = [_name(number) for number in numbers.tolist()]
    offsets = offset + np.arange(len(names))
    items = ItemRows(names, offsets, ["items-0"] * len(names), offsets, encoded, vectors, raw, [b""] * len(vectors))
    engagements = EngagementRows(
        names, ["click"] * len(names), offsets, np.full(len(names), np.nan), ["engagements-0"] * len(names), offsets,
        [b""] * len(names), event_ids=[None] * len(names),
    )  # fmt: skip
    end = offset + len(names)
    return EventBatch(items, engagements, {"items-0": end, "engagements-0": end})
