"""Small stores, events and batches for tests: everything a test of the index needs and nothing it has to hide."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.adds_up import check_adds_up
from indexer.batch import EngagementRows, EventBatch, ItemRows
from indexer.index import Index
from indexer.keys import ItemState
from indexer.labels import Labels
from indexer.loading import load_view
from indexer.logical_state import LogicalState, logical_state, merge
from indexer.order import impact_of
from indexer.pending import Expired
from indexer.store import Store, store_path
from indexer.verify import verify
from indexer.view import LiveView
from schemas.artifact import FeatureSpec
from schemas.config import Config
from schemas.dead_letters import DeadLetter
from schemas.prior import BITS, LearnedPrior
from schemas.replies import VerifyReply
from schemas.store import StoreMeta
from streamer.dead_letters import read_file
from streamer.generations import current_generation, dead_letter_path, local_shards

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which most tests do without

FACETS, LAYERS, CODEWORDS, DIM = 2, 2, 4, 4
HALF_LIVES_S = (60, 3_600)


def codewords(seed: int = 0) -> npt.NDArray[np.float32]:
    """(F, L, M, d) float32; the second layer is finer than the first."""
    rng = np.random.default_rng(seed)
    scale = np.array([1.0, 0.3], np.float32)[None, :, None, None]
    return rng.standard_normal((FACETS, LAYERS, CODEWORDS, DIM)).astype(np.float32) * scale


def store_meta(**changes: Any) -> StoreMeta:
    facts: dict[str, Any] = {
        "generation": "g000001",
        "model_name": "test",
        "model_version": "1",
        "model_hash": "model",
        "codebook_hash": "codebook",
        "facets": FACETS,
        "layers": LAYERS,
        "codewords": CODEWORDS,
        "dim": DIM,
        "half_lives_s": HALF_LIVES_S,
        "created_at_ms": 0,
    }
    return StoreMeta(**facts | changes)


def learned_prior(seed: int = 0) -> LearnedPrior:
    """Random, of an index with the half-lives above."""
    widths = (3, 5, 1)
    parameters = np.random.default_rng(seed).normal(0, 1, 3 * 5 + 5 + 5)
    snapped = tuple((np.rint(parameters * 2**BITS) / 2**BITS).tolist())
    return LearnedPrior(windows=(1, 0), widths=widths, parameters=snapped, temperature=0.25)


def config(**sections: Any) -> Config:
    """Bounds of 2 to 8, unless told otherwise."""
    return Config.model_validate({"rebalance": {"low": 2, "high": 8}} | sections)


def open_index(path: Path, settings: Config | None = None, **meta: Any) -> Index:
    return Index.open(path, store_meta(**meta), codewords(), config() if settings is None else settings)


def rebalance(index: Index, settings: Config | None = None) -> None:
    index.compactor(config() if settings is None else settings).run_until_idle()


# -- events ------------------------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """One record of a stream: an upsert, a delete (no vector) or an engagement (a kind)."""

    source: str
    offset: int
    item_id: str
    at: int
    vector: tuple[float, ...] | None = None
    kind: str | None = None
    value: float | None = None
    event_id: str | None = None

    @property
    def event(self) -> dict[str, Any]:
        common = {"schema_version": 1, "item_id": self.item_id, "occurred_at": self.at}
        if self.kind is not None:
            told = {} if self.event_id is None else {"event_id": self.event_id}
            return common | {"type": "engagement", "user_id": "u", "kind": self.kind, "value": self.value} | told
        if self.vector is None:
            return common | {"type": "item.deleted"}
        said = {"language": (None, "pt", "en")[self.at % 3], "categories": [f"c{self.at % 4}"][: self.at % 5]}
        return common | {"type": "item.created", "embedding": list(self.vector), **said}

    @property
    def labels(self) -> Labels:
        """What an upsert says of itself."""
        return Labels.of(self.event["language"], self.event["categories"])

    @property
    def encoded(self) -> bytes:
        return json.dumps(self.event).encode()


def vector_of(seed: int) -> tuple[float, ...]:
    """Facet embeddings, (F * d) numbers that float16 holds exactly, equal for equal seeds."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(FACETS * DIM).astype(np.float16).tolist())


def vectors_of(events: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float16]:
    """(n, F, d) float16 facet embeddings of upserts."""
    return np.array([event["embedding"] for event in events], np.float16).reshape(-1, FACETS, DIM)


def assign(vectors: npt.NDArray[np.float16]) -> npt.NDArray[np.uint32]:
    """(n, F) uint32 raw indices: the nearest codeword of each layer's residual."""
    raw = np.zeros(vectors.shape[:2], np.uint32)
    for facet, layers in enumerate(codewords()):
        rest = vectors[:, facet].astype(np.float32)
        for words in layers:
            gap = rest[:, None] - words[None]
            nearest = (gap * gap).sum(2).argmin(1)
            raw[:, facet] = raw[:, facet] * CODEWORDS + nearest
            rest = rest - words[nearest]
    return raw


def reencode(content: list[bytes]) -> npt.NDArray[np.uint32]:
    """What ``verify`` takes for I7."""
    return assign(vectors_of([json.loads(value) for value in content]))


def batch_of(records: Sequence[Record], dead_letters: int = 0) -> EventBatch:
    """Records in reading order as one batch; dead letters are of a partition of their own."""
    items = [(at, record) for at, record in enumerate(records) if record.kind is None]
    engagements = [(at, record) for at, record in enumerate(records) if record.kind is not None]
    upserts = [record for _, record in items if record.vector is not None]
    is_upsert = np.array([record.vector is not None for _, record in items], np.bool_)
    vectors = vectors_of([record.event for record in upserts])
    positions: dict[str, int] = {}
    for record in records:
        positions[record.source] = max(record.offset + 1, positions.get(record.source, 0))
    return EventBatch(
        ItemRows(
            [record.item_id for _, record in items],
            np.array([record.at for _, record in items], np.int64),
            [record.source for _, record in items],
            np.array([record.offset for _, record in items], np.int64),
            np.where(is_upsert, np.cumsum(is_upsert) - 1, -1),
            vectors,
            assign(vectors),
            [record.encoded for record in upserts],
            np.array([at for at, _ in items], np.int64),
            [record.labels for record in upserts],
        ),
        EngagementRows(
            [record.item_id for _, record in engagements],
            [record.kind or "" for _, record in engagements],
            np.array([record.at for _, record in engagements], np.int64),
            np.array([math.nan if record.value is None else record.value for _, record in engagements]),
            [record.source for _, record in engagements],
            np.array([record.offset for _, record in engagements], np.int64),
            [record.encoded for _, record in engagements],
            np.array([at for at, _ in engagements], np.int64),
            [record.event_id for _, record in engagements],
        ),
        positions,
        letters={"items-9": range(dead_letters)},
    )


class Collected(list[Expired]):
    """A sink for the writer that keeps what waited in vain."""

    def __call__(self, expired: list[Expired]) -> int | None:
        self.extend(expired)
        return None

    def letters(self) -> list[DeadLetter]:
        """As the daemon writes them."""
        out = []
        for waiting, reason in self:
            topic, _, number = waiting.source.rpartition("-")
            out.append(
                DeadLetter(
                    reason=reason,
                    detail="",
                    topic=topic,
                    partition=int(number),
                    offset=waiting.offset,
                    failed_at_ms=0,
                    key=waiting.item_id.encode(),
                    value=waiting.record,
                )
            )
        return out


def upserts(seeds: Iterable[int], prefix: str = "i", start: int = 0, at: int = 1_000) -> list[Record]:
    """Items with the given vectors; consecutive offsets."""
    return [
        Record("items-0", start + row, f"{prefix}{start + row}", at + row, vector_of(seed))
        for row, seed in enumerate(seeds)
    ]


def fill(index: Index, seeds: Iterable[int], **options: Any) -> None:
    """Items with the given vectors, in one batch."""
    index.writer.apply(batch_of(upserts(seeds, **options)))


# -- checks ------------------------------------------------------------------------------------------------------------


def check_store(store: Store, **options: Any) -> VerifyReply:
    """``verify`` with everything it can check."""
    return verify(store, expected=store_meta(), reencode=reencode, **options)


def assert_sound(store: Store, **options: Any) -> None:
    reply = check_store(store, **options)
    assert reply.ok, reply.violations


def assert_view_is_loaded(index: Index) -> None:
    """The live view holds exactly what a view loaded from the store just now holds, and what the postings say."""
    assert_same_view(index.view, load_view(index.store, codewords()))
    check_adds_up(index.view, index.store)
    shown = {
        (number, leaf, ordinal)
        for number, facet in enumerate(index.view.facets)
        for leaf in range(len(facet.leaves))
        for ordinal in facet.members.row(leaf).tolist()
    }
    assert set(map(keys.POSTING.unpack, index.store.scan_keys("postings"))) == shown


def assert_same_view(one: LiveView, other: LiveView) -> None:
    assert one.totals == other.totals
    assert one.positions == other.positions
    assert [*one.labels] == [*other.labels]
    assert list(one.ids) == list(other.ids)
    assert one.ordinals_of(list(one.ids)).tolist() == other.ordinals_of(list(one.ids)).tolist()
    assert len(one.items) == len(other.items)
    live = one.items["state"] == ItemState.LIVE
    for name in (
        "state",
        "source",
        "labels",
        "created_at",
        "occurred_at",
        "offset",
        "raw",
        "leaf",
        "epochs",
        "value_sum",
        "last_at",
        "counts",
        "decayed",
    ):
        np.testing.assert_array_equal(one.items[name], other.items[name], err_msg=name)
    at = np.flatnonzero(live)
    for facet in range(one.meta.facets):
        np.testing.assert_array_equal(one.vectors(at, facet), other.vectors(at, facet), err_msg="vectors")
    assert one.landmark == other.landmark
    for view in (one, other):
        assert_lists_are_sound(view)
    for facet, (mine, its) in enumerate(zip(one.facets, other.facets, strict=True)):
        np.testing.assert_array_equal(mine.alive(), its.alive(), err_msg=f"leaves of facet {facet}")
        alive = mine.alive()
        for name in ("state", "version", "marked_size", "centroid"):
            np.testing.assert_array_equal(mine.leaves[name][alive], its.leaves[name][alive], err_msg=name)
        for leaf in range(len(mine.leaves)):
            assert set(mine.members.row(leaf).tolist()) == set(its.members.row(leaf).tolist())
            assert len(mine.members.row(leaf)) == len(its.members.row(leaf))
            assert sorted(mine.raws.row(leaf).tolist()) == sorted(its.raws.row(leaf).tolist())
        for raw in range(mine.raw_indices):
            assert set(mine.routes.row(raw).tolist()) == set(its.routes.row(raw).tolist())


def assert_lists_are_sound(view: LiveView) -> None:
    """Posting lists have places and heats that are right, and are in order as far as they say they are."""
    members = view.members
    for row in range(len(members.start)):
        held = members.row(row)
        assert (members.place[held, row % FACETS] == np.arange(len(held))).all()
        heats = members.heat[members.start[row] : members.start[row] + len(held)]
        np.testing.assert_array_equal(heats, view.heats(held.astype(np.int64)))
        assert members.touched[row] <= view.order.slack * len(held) or not len(held)
        how, created_at = view.impact, view.items["created_at"][held]
        impact = impact_of(heats, created_at, how.creation, how.half_life_s, view.landmark)
        if not members.touched[row]:
            assert held.tolist() == held[np.lexsort((-held.astype(np.int64), -impact))].tolist()


# -- whole runs --------------------------------------------------------------------------------------------------------


def tiny_model(seed: int = 0, half_lives_s: tuple[int, ...] = ()) -> FrozenModel:
    """A model that encodes titles into two facets of sixteen codes; with half-lives, it has a prior that reads them."""
    from model_runtime.runtime import FrozenModel

    return FrozenModel.untrained(
        facets=2,
        layers=2,
        codewords=4,
        dim=4,
        seed=seed,
        features=FeatureSpec(buckets=256),
        token_dim=4,
        hidden=(4,),
        half_lives_s=half_lives_s,
        threads=1,
    )


def write_log(path: Path, lines: Mapping[str, Sequence[bytes]]) -> Path:
    """An event log of partition name (``items-00000``) -> lines."""
    path.mkdir(parents=True, exist_ok=True)
    for name, records in lines.items():
        (path / f"{name}.jsonl").write_bytes(b"".join(line + b"\n" for line in records))
    return path


def random_log(seed: int, events: int, partitions: int = 2, span_ms: int = 10_000_000) -> dict[str, list[bytes]]:
    """Lines of an event log with everything in it: updates, deletes, late and early events, bad records."""
    rng = np.random.default_rng(seed)
    lines: dict[str, list[bytes]] = {
        f"{stream}-{number:05d}": [] for stream in ("items", "engagements") for number in range(partitions)
    }
    names = max(4, events // 8)
    for number in range(events):
        item = int(rng.integers(names))
        at = max(0, number * span_ms // events + int(rng.normal(0, span_ms / 50)))
        what = rng.choice(["create", "create", "update", "delete", "click", "click", "click", "click", "bad"])
        event: dict[str, Any] = {"item_id": f"item {item}", "occurred_at": at}
        stream = "engagements" if what == "click" else "items"
        if what in {"create", "update"}:
            event |= {"type": f"item.{what}d", "title": f"word{rng.integers(5)} word{rng.integers(50)}"}
        elif what == "delete":
            event |= {"type": "item.deleted"}
        elif what == "click":
            event |= {"type": "engagement", "user_id": "u", "kind": str(rng.choice(["click", "like", "view"]))}
            event |= {"item_id": f"never {item}"} if rng.random() < 0.05 else {}
            event |= {"value": float(rng.normal())} if rng.random() < 0.5 else {}
        else:
            stream = str(rng.choice(["items", "engagements"]))
            event |= {"type": "item.renamed"} if rng.random() < 0.5 else {"type": "engagement", "occurred_at": -1}
        lines[f"{stream}-{item % partitions:05d}"].append(json.dumps(event).encode())
    return lines


def state_of(data_dir: Path, generation: str | None = None) -> LogicalState:
    """The logical state a daemon left behind, over all its shards, dead letters included."""
    name = current_generation(data_dir) if generation is None else generation
    states = []
    for shard in local_shards(data_dir, name):
        with Store.open(store_path(data_dir, name, shard)) as store:
            states.append(logical_state(store, read_file(dead_letter_path(data_dir, name, shard))))
    return merge(states)
