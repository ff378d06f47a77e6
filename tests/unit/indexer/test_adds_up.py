"""What opening an index tells of files that went missing, and what it leaves to ``verify``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from indexer import keys
from indexer.index import Index
from indexer.rocksdb import options
from indexer.store import Store
from schemas.errors import StoreCorruptError
from tests.builders import Record, batch_of, check_store, fill, open_index, rebalance


@pytest.fixture
def index(tmp_path: Path) -> Index:
    index = open_index(tmp_path / "store")
    fill(index, range(60))
    rebalance(index)
    index.writer.apply(batch_of([Record("items-0", 60, "i3", 5_000, None)]))
    return index


def reopened(index: Index) -> None:
    index.close()
    open_index(index.store.path).close()


def lose(family: str, ordinal: int) -> Callable[[Index], None]:
    def change(index: Index) -> None:
        write = index.store.batch()
        write.delete_many(family, [keys.U64.pack(ordinal)])
        index.store.write(write)

    return change


def one_more(family: str, ordinal: int) -> Callable[[Index], None]:
    def change(index: Index) -> None:
        write = index.store.batch()
        write.put(family, keys.U64.pack(ordinal), index.store.get(family, keys.U64.pack(5)) or b"")
        index.store.write(write)

    return change


def in_place_of_another(index: Index) -> None:
    """Item 3 is deleted, 7 is not: as many embeddings as before, between the two each one's is its neighbour's."""
    one_more("vectors", 3)(index)
    lose("vectors", 7)(index)


def other_size(index: Index) -> None:
    leaf = int(index.view.facets[1].alive()[0])
    page, at = divmod(leaf, keys.PAGE)
    values = np.frombuffer(index.store.get("sizes", keys.FACET_U32.pack(1, page)) or b"", "<u4").copy()
    values[at] += 1
    write = index.store.batch()
    write.put("sizes", keys.FACET_U32.pack(1, page), values.tobytes())
    index.store.write(write)


def no_sizes(index: Index) -> None:
    write = index.store.batch()
    write.delete_many("sizes", [keys.FACET_U32.pack(0, 0)])
    index.store.write(write)


def no_postings(index: Index) -> None:
    database = index.store._db
    database.drop_column_family("postings")
    database.create_column_family("postings", options())


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        pytest.param(lose("items", 0), "items", id="the first item is missing"),
        pytest.param(lose("items", 59), "items", id="the last item is missing"),
        pytest.param(lose("vectors", 7), "vectors", id="an embedding is missing"),
        pytest.param(one_more("vectors", 3), "vectors", id="a deleted item has an embedding"),
        pytest.param(in_place_of_another, "vectors", id="an embedding in place of another"),
        pytest.param(one_more("items", 60), "items", id="an item nobody counted"),
        pytest.param(other_size, "of facet 1", id="a leaf of another size"),
        pytest.param(no_sizes, "of facet 0", id="no sizes"),
        pytest.param(no_postings, "0 postings at most where 118 were counted", id="no postings"),
    ],
)
def test_families_that_are_not_of_one_moment_are_refused(
    index: Index, damage: Callable[[Index], None], what: str
) -> None:
    damage(index)
    with pytest.raises(StoreCorruptError, match=rf"is damaged: .*{what}.*restore a checkpoint or\s+replay"):
        reopened(index)


def test_what_is_as_it_was_written_is_opened(index: Index) -> None:
    reopened(index)


def test_a_posting_in_another_place_is_for_verify_to_tell(index: Index) -> None:
    leaf = int(index.view.items["leaf"][5, 0])
    write = index.store.batch()
    write.delete_many("postings", [keys.POSTING.pack(0, leaf, 5)])
    write.put_empty("postings", [keys.POSTING.pack(0, leaf + 1, 5)])
    index.store.write(write)
    reopened(index)
    with Store.open(index.store.path) as store:
        assert any("has no posting" in violation for violation in map(str, check_store(store).violations))


def test_of_a_family_there_are_never_more_keys_than_told(index: Index) -> None:
    store = index.store

    def told() -> None:
        for family in ("postings", "items", "vectors", "stats"):
            assert store.most(family) >= sum(1 for _ in store.scan_keys(family))

    told()
    for column in store._family.values():
        column.flush(True)
    told()
    for at in range(20):
        index.writer.apply(batch_of([Record("items-0", 61 + at, f"i{at}", 6_000, None)]))
        told()
    for column in store._family.values():
        column.flush(True)
        column.compact_range(None, None)
    told()
