"""A store's image made the store of another model: it means what applying everything with that model would mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from indexer import keys
from indexer.drift import Drift
from indexer.index import Index
from indexer.logical_state import differences, logical_state
from indexer.reencoding import reencode
from indexer.store import Store
from indexer.verify import verify
from schemas.errors import StoreCorruptError, StoreMismatchError
from schemas.refresh import FacetDrift, Refreshed, merged
from schemas.store import StoreMeta
from tests.builders import (
    FACETS,
    Record,
    assign,
    batch_of,
    codewords,
    config,
    open_index,
    rebalance,
    store_meta,
    upserts,
    vector_of,
    vectors_of,
)

COMING = store_meta(generation="g000002", model_hash="other")


def records() -> list[Record]:
    """Sixty items, some deleted, some engaged, one engaged before it came and another that never came."""
    items = upserts(range(60))
    clicks = [
        Record("engagements-0", at, f"i{at * 7 % 60}", 2_000 + at, kind=("click", "like")[at % 2], value=at / 3)
        for at in range(40)
    ]
    deletes = [Record("items-0", 60 + at, f"i{at * 5}", 3_000 + at) for at in range(6)]
    again = [Record("items-0", 66, "i5", 4_000, vector_of(99))]
    early = [Record("engagements-0", 40, "never", 2_100, kind="click")]
    return [*items, *clicks, *deletes, *again, *early]


def vectors_by_other(content: list[bytes]) -> np.ndarray:
    """The other model turns the facets' embeddings round."""
    return vectors_of([json.loads(value) for value in content])[:, ::-1].copy()


def encode_by_other(content: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    found = vectors_by_other(content)
    return found, assign(found)


def image_of(path: Path) -> Path:
    with open_index(path / "before") as index:
        index.writer.apply(batch_of(records(), dead_letters=2))
        rebalance(index)
        index.store.checkpoint(path / "image")
    return path / "image"


def made_by_other(path: Path) -> Index:
    """What applying everything with the other model makes."""
    batch = batch_of(records(), dead_letters=2)
    found = batch.items.vectors[:, ::-1].copy()
    batch.items.vectors[:] = found
    batch.items.raw[:] = assign(found)
    index = Index.open(path, COMING, codewords(), config())
    index.writer.apply(batch)
    return index


def test_it_means_what_applying_everything_with_the_new_model_means(tmp_path: Path) -> None:
    image = image_of(tmp_path)
    told: list[int] = []
    done = reencode(image, COMING, codewords(), encode_by_other, config(), told.append)
    assert sum(told) == done.items == 55
    with Store.open(image) as store, made_by_other(tmp_path / "expected") as expected:
        assert not differences(logical_state(expected.store), logical_state(store))
        reply = verify(store, expected=COMING, reencode=lambda content: encode_by_other(content)[1])
        assert reply.ok, reply.violations
        assert store.refreshed() == done
        entries = [json.loads(value) for _, value in store.scan("journal")]
        assert [entry["before"] for entry in entries if entry["op"] == "refresh"] == ["model"]
        assert store.totals().journal_seq == 1 + max(entry["seq"] for entry in entries)


def test_the_store_that_it_was_made_of_is_as_it_was(tmp_path: Path) -> None:
    image = image_of(tmp_path)
    with Store.open(tmp_path / "before") as store:
        before = logical_state(store)
        postings = [*store.scan_keys("postings")]
        reencode(image, COMING, codewords(), encode_by_other, config())
        assert not differences(before, logical_state(store))
        assert postings == [*store.scan_keys("postings")]
    with open_index(tmp_path / "before") as index:
        assert index.view.totals.items_live == 55


def test_events_go_on_from_its_offsets(tmp_path: Path) -> None:
    image = image_of(tmp_path)
    reencode(image, COMING, codewords(), encode_by_other, config())
    with Index.open(image, COMING, codewords(), config()) as index:
        assert index.view.positions == {"items-0": 67, "engagements-0": 41}
        index.writer.apply(batch_of([Record("items-0", 67, "never", 5_000, vector_of(3))]))
        assert len(index.pending) == 0
        assert index.view.counters(index.view.ordinals_of(["never"])).counts.sum() == 1


def test_the_new_model_may_have_another_shape(tmp_path: Path) -> None:
    image = image_of(tmp_path)
    meta = store_meta(generation="g000002", model_hash="other", facets=3, layers=1, codewords=2, dim=6)
    words = np.random.default_rng(0).standard_normal((3, 1, 2, 6)).astype(np.float32)

    def encode(content: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([len(value) for value in content])
        return rng.standard_normal((len(content), 3, 6)).astype(np.float16), rng.integers(
            0, 2, (len(content), 3)
        ).astype(np.uint32)

    done = reencode(image, meta, words, encode, config())
    assert done.facets == ()
    with Store.open(image) as store:
        assert verify(store, expected=meta).ok


def test_an_image_of_nothing_is_a_store_of_nothing(tmp_path: Path) -> None:
    with open_index(tmp_path / "before") as index:
        index.store.checkpoint(tmp_path / "image")
    done = reencode(tmp_path / "image", COMING, codewords(), encode_by_other, config())
    assert done.facets == (FacetDrift(),) * FACETS
    with Store.open(tmp_path / "image") as store:
        assert verify(store, expected=COMING).ok


def test_other_half_lives_are_refused(tmp_path: Path) -> None:
    wanted: StoreMeta = store_meta(half_lives_s=(60, 7_200))
    with pytest.raises(StoreMismatchError, match=r"half-lives of \[60, 3600\] s, \[60, 7200\]"):
        reencode(image_of(tmp_path), wanted, codewords(), encode_by_other, config())


def test_content_that_is_missing_is_damage(tmp_path: Path) -> None:
    image = image_of(tmp_path)
    with Store.open(image) as store:
        write = store.batch()
        write.delete_many("content", [next(store.scan_keys("content"))])
        store.write(write)
    with pytest.raises(StoreCorruptError, match="lacks 1 of 55 records in content"):
        reencode(image, COMING, codewords(), encode_by_other, config())


@pytest.mark.parametrize(
    ("family", "told"), [("items", "a record in items is shorter"), ("vectors", "6 bytes in vectors .* do not decode")]
)
def test_a_record_that_was_cut_is_damage(tmp_path: Path, family: str, told: str) -> None:
    image = image_of(tmp_path)
    with Store.open(image) as store:
        write = store.batch()
        write.put(family, keys.U64.pack(1), (store.get(family, keys.U64.pack(1)) or b"")[:6])
        store.write(write)
    with pytest.raises(StoreCorruptError, match=told):
        reencode(image, COMING, codewords(), encode_by_other, config())


def test_the_same_model_changes_nothing() -> None:
    drift = Drift(store_meta(), COMING)
    vectors = vectors_of([{"embedding": vector_of(seed)} for seed in range(20)])
    drift.add([row.tobytes() for row in vectors], assign(vectors), vectors, assign(vectors))
    for facet in drift.facets():
        assert facet.changed == 0
        assert facet.similarity == pytest.approx(1)
        assert facet.similarity_low == pytest.approx(1)


def test_drift_is_told_facet_by_facet() -> None:
    drift = Drift(store_meta(), COMING)
    vectors = vectors_of([{"embedding": vector_of(seed)} for seed in range(20)])
    other, raw = vectors.copy(), assign(vectors)
    other[:5, 1] *= -1
    drift.add([row.tobytes() for row in vectors], raw, other, raw + np.array([0, 1], np.uint32) * (raw[:, :1] >= 0))
    first, second = drift.facets()
    assert (first.changed, second.changed) == (0, 1)
    assert second.similarity == pytest.approx(0.5)
    assert second.similarity_low == pytest.approx(-1)


def test_shards_count_by_their_items() -> None:
    def one(items: int, changed: float, low: float) -> Refreshed:
        facet = FacetDrift(changed=changed, similarity=changed, similarity_low=low)
        return Refreshed(before="m", before_version="1", items=items, seconds=1, at_ms=items, facets=(facet,))

    found = merged([one(10, 0.2, 0.5), one(30, 0.6, 0.4)])
    assert found is not None
    assert (found.items, found.seconds, found.at_ms) == (40, 2, 30)
    assert found.facets[0].changed == pytest.approx(0.5)
    assert found.facets[0].similarity_low == 0.4
    assert merged([]) is None
