"""The index itself under test: its writer, its compactor, its retrieval, fed with the past as it happens."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from indexer.batch import EngagementRows, EventBatch, ItemRows
from indexer.counters import counters_at
from indexer.index import Index
from indexer.rebalance.compactor import out_of_bounds
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.request import Request
from model_runtime.codebook import Codebook, raw_indices
from streamer.evaluation.system import I32, I64, News
from streamer.generations import store_meta

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from model_runtime.runtime import FrozenModel
    from schemas.config import Config
    from streamer.evaluation.coding import Coding
    from streamer.evaluation.embeddings import Embeddings
    from streamer.evaluation.past import Past

_ITEMS: Final = "items-0"
_ENGAGEMENTS: Final = "engagements-0"
_BULK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Lineup:
    """What an index is built from.

    Attributes:
        item_ids: by row.
        config: counters, rebalancing, order of posting lists.
        coding: facets and codewords.
        scratch: an empty directory.
        rebalance_s: how often it is rebalanced, in event time; None: never.
    """

    item_ids: Sequence[str]
    config: Config
    coding: Coding
    scratch: Path
    rebalance_s: float | None = 300.0


class LiveIndex:
    """One index, a generation for each model.

    Args:
        past: what is loaded when a generation begins.
        embeddings: of items; the index assigns codes and files them.
        lineup: all else.

    Attributes:
        index, reader: of the present generation.
    """

    def __init__(self, past: Past, embeddings: Embeddings, lineup: Lineup) -> None:
        self._past = past
        self._embeddings = embeddings
        self._lineup = lineup
        self._generation = 0
        self._row_of: I64 = np.empty(0, np.int64)
        self.index: Index | None = None
        self._build()

    def follow(self, news: News) -> None:
        """See :class:`streamer.evaluation.system.Follower`."""
        self._apply(self._items(news.arrived, news.arrived_at), news.engaged, news.engaged_at)
        if len(news.left):
            times = np.full(len(news.left), news.now_ms - 1)
            self._apply(self._items(news.left, times, gone=True), news.engaged[:0], news.engaged_at[:0])
        interval = self._lineup.rebalance_s
        if interval is not None and news.now_ms - self._rebalanced_at >= interval * 1_000:
            self._rebalance(news.now_ms)

    def refresh(self, model: FrozenModel) -> None:  # noqa: ARG002  # the embeddings went over to it before
        """See :class:`streamer.evaluation.system.Follower`."""
        self._build()

    def close(self) -> None:
        """Release the store and remove it."""
        if self.index is not None:
            self.index.close()
            self.index = None
        shutil.rmtree(self._lineup.scratch / f"g{self._generation}", ignore_errors=True)

    def requests(self, triggers: Sequence[I32], seen: Sequence[I32], seed: int) -> list[Request]:
        """Requests, as :func:`indexer.retrieval.retrieve.retrieve_many` takes them.

        Args:
            triggers: item rows of each; those out of the pool are given as vectors.
            seen: item rows that each answer may not hold, its triggers among them.
            seed: of multinomial selection.
        """
        ids, counts = self._lineup.item_ids, [len(rows) for rows in triggers]
        flat = np.concatenate([*triggers, np.empty(0, np.int32)])
        live = self._past.live[flat]
        cold = ~live & self._embeddings.exists(flat)
        vectors = self._vectors(flat[cold])
        raws = self._raws(vectors)
        ends = np.cumsum([0, *counts])
        starts = np.concatenate([[0], np.cumsum(cold)])[ends].tolist()
        out = []
        for at, (begin, end) in enumerate(itertools.pairwise(ends.tolist())):
            known = [ids[row] for row in flat[begin:end][live[begin:end]].tolist()]
            exclude = [ids[row] for row in seen[at].tolist()] if len(seen[at]) > counts[at] else ()
            mine = slice(starts[at], starts[at + 1])
            if mine.start == mine.stop:
                out.append(Request(known, exclude=exclude, seed=seed))
            else:
                out.append(Request(known, vectors[mine], raws[mine], exclude, seed=seed))
        return out

    def rows(self, ordinals: I64) -> I64:
        """(n,) item rows."""
        have, all_ = len(self._row_of), self._view.totals.next_ordinal
        if all_ > have:
            new = self.reader.item_ids(np.arange(have, all_))
            rows = np.fromiter(map(self._row.__getitem__, new), np.int64, len(new))
            self._row_of = np.concatenate([self._row_of, rows])
        return self._row_of[ordinals]

    def health(self) -> dict[str, Any]:
        """Sizes of posting lists, once the compactor is idle if there is one, and how codewords are used now."""
        if self._lineup.rebalance_s is not None:
            self._compactor.run_until_idle()
        view = self._view
        sizes = [facet.sizes()[facet.alive()] for facet in view.facets]
        joined = np.concatenate(sizes)
        usage = self._usage()
        return {
            "leaves": len(joined),
            "bounds": list(view.totals.bounds),
            "within_bounds_share": 1 - out_of_bounds(view) / max(1, len(joined)),
            "sizes": np.sort(joined).tolist(),
            "codeword_usage": np.sort(usage.reshape(-1, usage.shape[-1]), axis=1)[:, ::-1].mean(0).tolist(),
            "splits": view.totals.splits,
            "merges": view.totals.merges,
            **self._likeness(),
        }

    def codewords_active_share(self) -> float:
        """Share of codewords of all facets and layers that some item of the pool has now."""
        return float((self._usage() > 0).mean())

    def _usage(self) -> I64:
        """(F, L, M) items of the pool that have each codeword."""
        codes = self._codebook.assign(self._vectors(np.flatnonzero(self._past.live)))
        facets, layers, words = self._codebook.codewords.shape[:3]
        usage = np.empty((facets, layers, words), np.int64)
        for facet in range(facets):
            for layer in range(layers):
                usage[facet, layer] = np.bincount(codes[:, facet, layer], minlength=words)
        return usage

    def _likeness(self) -> dict[str, float]:
        """Mean similarity of item pairs of one leaf, and of any two items, over all facets."""
        view = self._view
        live = np.flatnonzero(self._past.live)
        vectors = self._vectors(live).astype(np.float32)
        ordinals = view.ordinals_of([self._lineup.item_ids[row] for row in live.tolist()])
        leaves = view.items["leaf"][ordinals]
        inside, across = [], []
        for facet in range(vectors.shape[1]):
            mine, leaf = vectors[:, facet], leaves[:, facet].astype(np.int64)
            count = np.bincount(leaf)
            total = np.zeros((len(count), mine.shape[1]))
            np.add.at(total, leaf, mine)
            pairs = count * (count - 1.0)
            # |sum of unit vectors|^2 = n + twice the similarities of all pairs
            inside.append(((total**2).sum(1) - count)[pairs > 0].sum() / max(1.0, pairs.sum()))
            n = len(live)
            across.append(((mine.sum(0, dtype=np.float64) ** 2).sum() - n) / max(1.0, n * (n - 1.0)))
        return {"similarity_within": float(np.mean(inside)), "similarity_between": float(np.mean(across))}

    @property
    def _view(self) -> Any:
        assert self.index is not None
        return self.index.view

    def _build(self) -> None:
        """A generation of the items of the pool, with what was counted of them: as if all engagements came again."""
        self.close()
        self._generation += 1
        lineup, past, model = self._lineup, self._past, self._embeddings.model
        live = np.flatnonzero(past.live).astype(np.int32)
        codewords = lineup.coding.codewords(model, self._embeddings.of(live))
        self._codebook = Codebook(codewords, torch.device("cpu"))
        half_lives_s = lineup.config.counters.half_lives_s
        meta = store_meta(model, f"g{self._generation}", half_lives_s)
        meta = meta.model_copy(update={"facets": len(codewords)})
        path = lineup.scratch / f"g{self._generation}"
        path.mkdir(parents=True)
        self.index = Index.open(path, meta, codewords, lineup.config)
        self.reader = ViewReader(self.index.view)
        self._compactor = self.index.compactor(lineup.config)
        self._offsets = {_ITEMS: 0, _ENGAGEMENTS: 0}
        self._row = {item_id: row for row, item_id in enumerate(lineup.item_ids)}
        self._row_of = np.empty(0, np.int64)
        by_age = live[np.argsort(past.created_at[live], kind="stable")]
        for start in range(0, len(by_age), _BULK):
            part = by_age[start : start + _BULK]
            self._apply(self._items(part, past.created_at[part]), part[:0], np.empty(0, np.int64))
        view = self.index.view
        ordinals = view.ordinals_of([lineup.item_ids[row] for row in by_age.tolist()])
        with view.lock:
            view.engage(ordinals, counters_at(past.decayed()[by_age], past.now_ms, half_lives_s))
            landmark = view.next_landmark(past.now_ms)
            view.age(landmark, view.aged(landmark))
            view.settle()
        self._rebalanced_at = past.now_ms
        if lineup.rebalance_s is not None:
            self._rebalance(past.now_ms)

    def _rebalance(self, now_ms: int) -> None:
        self._rebalanced_at = now_ms
        self._compactor.run_until_idle()

    def _vectors(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float16]:
        return np.ascontiguousarray(self._embeddings.half(rows)[:, : self._lineup.coding.facets])

    def _raws(self, vectors: npt.NDArray[np.float16]) -> npt.NDArray[np.uint32]:
        return raw_indices(self._codebook.assign(vectors), self._codebook.codewords.shape[2])

    def _items(self, rows: I32, times: I64, *, gone: bool = False) -> ItemRows:
        first = self._offsets[_ITEMS]
        self._offsets[_ITEMS] += len(rows)
        vectors = self._vectors(rows[:0] if gone else rows)
        return ItemRows(
            [self._lineup.item_ids[row] for row in rows.tolist()],
            times,
            [_ITEMS] * len(rows),
            np.arange(first, first + len(rows)),
            np.full(len(rows), -1) if gone else np.arange(len(rows)),
            vectors,
            self._raws(vectors),
            [b"{}"] * len(vectors),
            np.arange(len(rows)),
        )

    def _apply(self, items: ItemRows, engaged: I32, engaged_at: I64) -> None:
        first, n = self._offsets[_ENGAGEMENTS], len(engaged)
        self._offsets[_ENGAGEMENTS] += n
        ids = self._lineup.item_ids
        engagements = EngagementRows(
            [ids[row] for row in engaged.tolist()],
            ["engagement"] * n,
            engaged_at,
            np.full(n, np.nan),
            [_ENGAGEMENTS] * n,
            np.arange(first, first + n),
            [b""] * n,
            len(items) + np.arange(n),
        )
        assert self.index is not None
        self.index.writer.apply(EventBatch(items, engagements, dict(self._offsets)))
