"""The process of the task benchmark: whether what users went on to engage with was found, and how fast."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks import multi_ann
from benchmarks.ann_runs import ALONE, Ask, Systems
from benchmarks.apart import Answer, settle_heap
from benchmarks.multi_ann import MultiAnn
from indexer.batch import EngagementRows, EventBatch, ItemRows
from indexer.index import Index
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.request import Request
from indexer.retrieval.retrieve import prior, retrieve_many
from model_runtime.runtime import Encoded, FrozenModel
from model_runtime.training.data import TrainingLog
from schemas.config import Config, RetrievalConfig
from streamer.evaluation.requests import build_requests
from streamer.generations import store_meta
from streamer.training_data import read_training_log

I64 = npt.NDArray[np.int64]

OURS: Final = "ours"
OVER: Final = "multi-ANN 8x, same prior"
PLAIN: Final = "multi-ANN, similarity only"
CUTS: Final = (100, 500)
_BATCH: Final = 8_192


@dataclass(frozen=True, slots=True)
class Moment:
    """A time at which everything is asked, with what was there then.

    Attributes:
        index: of the pool, rebalanced, with its engagements; now_ms: the time.
        pool: (n,) item rows of the log, the row of an item in all below being its place here.
        vectors: (n, F, d) float32.
        triggers: (t,) rows of each request, at least one; target: (Q,) row, -1 where the item is not in the pool.
    """

    index: Index
    now_ms: int
    pool: I64
    vectors: npt.NDArray[np.float32]
    triggers: list[I64]
    target: I64


def moment(
    path: Path,
    log: TrainingLog,
    encoded: Encoded,
    model: FrozenModel,
    config: Config,
    window: tuple[int, int],
    to_ms: int,
    requests: int,
) -> Moment:
    """An index of what was engaged within the window, and requests from its end to ``to_ms``."""
    from_ms, now_ms = window
    inside = np.flatnonzero((log.time >= from_ms) & (log.time < now_ms))
    pool = np.unique(log.item[inside]).astype(np.int64)
    row_of = np.full(len(log.item_ids) + 1, -1, np.int64)
    row_of[pool] = np.arange(len(pool))
    asked = build_requests(log, now_ms, to_ms, requests)
    triggers = [each[each >= 0] for each in row_of[asked.triggers]]
    some = [at for at, each in enumerate(triggers) if len(each)]
    meta = store_meta(model, "benchmark", config.counters.half_lives_s)
    index = Index.open(path, meta, model.codewords, config)
    names = [log.item_ids[item] for item in pool.tolist()]
    nobody: I64 = np.empty(0, np.int64)
    for start in range(0, len(pool), _BATCH):
        part = pool[start : start + _BATCH]
        created = np.minimum(log.created_at[part], now_ms - 1)
        items = _items(names[start : start + len(part)], created, start, encoded, part)
        index.writer.apply(EventBatch(items, _clicks([], nobody, 0), {"items-0": start + len(part)}, letters={}))
    for start in range(0, len(inside), 8 * _BATCH):
        part = inside[start : start + 8 * _BATCH]
        clicks = _clicks([names[row] for row in row_of[log.item[part]].tolist()], log.time[part], start)
        no_items = _items([], nobody, 0, encoded, nobody)
        index.writer.apply(EventBatch(no_items, clicks, {"engagements-0": start + len(part)}, letters={}))
    index.compactor(config).run_until_idle()
    index.store.sync()
    index.close()
    return Moment(
        Index.open(path, meta, model.codewords, config), now_ms, pool, encoded.vectors[pool].astype(np.float32),
        [triggers[at] for at in some], row_of[asked.target[some]],
    )  # fmt: skip


def _items(names: list[str], created_at: I64, offset: int, encoded: Encoded, rows: I64) -> ItemRows:
    n = len(names)
    return ItemRows(
        names, created_at, ["items-0"] * n, np.arange(offset, offset + n), np.arange(n),
        encoded.vectors[rows], encoded.raw[rows], [b""] * n, np.arange(n),
    )  # fmt: skip


def _clicks(names: list[str], times: I64, offset: int) -> EngagementRows:
    n = len(names)
    return EngagementRows(
        names, ["click"] * n, times.astype(np.int64), np.full(n, np.nan), ["engagements-0"] * n,
        np.arange(offset, offset + n), [b""] * n,
    )  # fmt: skip


def measure(
    *,
    events: str,
    model: str,
    config: dict[str, Any],
    moments: list[list[int]],
    requests: int,
    ours: dict[str, dict[str, Any]],
    ivf: list[int],
    hnsw: list[int],
    threads: list[int],
    repeats: int,
) -> Answer:
    """Each system at each moment: the same requests, the same prior.

    Args:
        events: event log.
        model: artifact.
        config: of the index and the prior.
        moments: from when on a click puts an item into the pool, when is asked, until when requests are taken.
        requests: at a moment, at most.
        ours: name -> overrides of the retrieval section.
        ivf: nprobe of IVF-Flat.
        hnsw: ef.
        threads: numbers of them.
        repeats: as :meth:`benchmarks.ann_runs.Systems.measure`.

    Returns:
        ``systems``: for each number of threads and each system ``per_second`` (of each moment and repeat), ``p50_ms``,
        ``p99_ms``, ``recall`` and ``scored`` of a request; the name ends with ``@k``, where k items were wanted.
        ``pool``, ``requests``: means and sums.
    """
    settings = Config.model_validate(config)
    frozen = FrozenModel.load(Path(model), threads=1)
    log = read_training_log(Path(events), max(last for _, _, last in moments))
    encoded = frozen.encode(log.contents)
    found: dict[str, dict[str, list[Answer]]] = {str(count): {} for count in threads}
    pools, asked = [], 0
    for from_ms, now_ms, to_ms in moments:
        with tempfile.TemporaryDirectory(prefix="facetstream-task-") as scratch:
            here = moment(Path(scratch, "store"), log, encoded, frozen, settings, (from_ms, now_ms), to_ms, requests)
            pools.append(len(here.pool))
            asked += len(here.triggers)
            systems = _systems(here, log, settings, ours, ivf, hnsw)
            settle_heap()
            for count in threads:
                for name, answer in systems.measure(len(here.triggers), repeats, count).items():
                    answers = answer.pop("answers")
                    hits = [want in got for want, got in zip(here.target[::count].tolist(), answers, strict=True)]
                    answer |= {"hits": sum(hits), "asked": len(hits), "scored": systems.scored[name]}
                    found[str(count)].setdefault(name, []).append(answer)
            here.index.close()
    together = {count: {name: _joined(parts) for name, parts in all_.items()} for count, all_ in found.items()}
    return {"systems": together, "pool": float(np.mean(pools)), "requests": asked}


class _TaskSystems(Systems):
    """With what each scores in a request."""

    def __init__(self) -> None:
        super().__init__()
        self.scored: dict[str, float] = {}


def _systems(
    here: Moment, log: TrainingLog, config: Config, ours: dict[str, dict[str, Any]], ivf: list[int], hnsw: list[int]
) -> _TaskSystems:
    systems, reader = _TaskSystems(), ViewReader(here.index.view)
    rows = np.empty(len(here.index.view.ids), np.int64)
    names = [log.item_ids[item] for item in here.pool.tolist()]
    ordinals = here.index.view.ordinals_of(names)
    rows[ordinals] = np.arange(len(ordinals))
    asked = [Request([names[row] for row in each.tolist()]) for each in here.triggers]
    worth = prior(reader, ordinals, config.retrieval, here.now_ms).astype(np.float32)

    def answering(one: RetrievalConfig) -> Ask:
        return lambda at: rows[retrieve_many(reader, [asked[at]], one, here.now_ms)[0].ordinals]

    for k in CUTS:
        for name, overrides in ours.items():
            one = config.retrieval.model_copy(update={"k": k} | overrides)
            full = f"{OURS}, {name} @{k}"
            systems.add(full, lambda one=one: answering(one))  # type: ignore[misc]
            scored = [answer.scored for answer in retrieve_many(reader, asked, one, here.now_ms)]
            systems.scored[full] = float(np.mean(scored))
    # Not more lists than the pool fills: 39 items a list is what faiss asks for to train.
    lists = max(4, min(256, len(here.pool) // 39))
    for family, make, values in (
        ("HNSW M16, ef", multi_ann.hnsw, hnsw),
        ("IVF-Flat, nprobe", lambda facet: multi_ann.ivf_flat(facet, lists), ivf),
    ):
        if not values:
            continue
        base = MultiAnn(here.vectors, make, 1)
        searches = here.vectors.shape[1] * float(np.mean([len(each) for each in here.triggers]))
        for value in values:
            for k in CUTS:
                for kind, times, added in ((OVER, 8, worth), (PLAIN, 1, None)):
                    each = -(-times * k // 15)
                    full = f"{kind}, {family} {value} @{k}"
                    systems.peer(full, base.twin(each, added), value, here.triggers, k)
                    systems.scored[full] = systems.scored[f"{full}{ALONE}"] = each * searches
    return systems


def _joined(parts: list[Answer]) -> Answer:
    """One answer of those of all moments."""
    asked = [part["asked"] for part in parts]
    rounds = zip(*(part["per_second"] for part in parts), strict=True)
    return {
        # requests over the time that all moments took, repeat by repeat
        "per_second": [sum(asked) / sum(n / rate for n, rate in zip(asked, rates, strict=True)) for rates in rounds],
        "p50_ms": float(np.mean([part["p50_ms"] for part in parts])),
        "p99_ms": float(np.max([part["p99_ms"] for part in parts])),
        "recall": sum(part["hits"] for part in parts) / max(1, sum(asked)),
        "scored": float(np.mean([part["scored"] for part in parts])),
    }
