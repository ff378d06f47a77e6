"""Records that do not decode: an index is not opened with them, whatever family they are in."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer import keys
from indexer.index import Index
from schemas.errors import StoreCorruptError
from tests.builders import Record, batch_of, fill, open_index


@pytest.fixture
def index(tmp_path: Path) -> Index:
    index = open_index(tmp_path / "store")
    fill(index, range(30))
    index.writer.apply(batch_of([Record("engagements-0", row, f"i{row}", 2_000, kind="click") for row in range(9)]))
    return index


def cut(index: Index, family: str, length: int) -> None:
    """Leave so many bytes of the first record of a family, and close."""
    write = index.store.batch()
    key, value = next(index.store.scan(family))
    write.put(family, key, value[:length])
    index.store.write(write)
    index.close()


@pytest.mark.parametrize("length", [0, 1, 3])
@pytest.mark.parametrize("family", ["items", "vectors", "stats", "leaves", "sizes", "routes"])
def test_a_record_that_was_cut_is_damage(index: Index, family: str, length: int) -> None:
    cut(index, family, length)
    with pytest.raises(StoreCorruptError):
        open_index(index.store.path)


@pytest.mark.parametrize("family", ["items", "vectors", "stats", "leaves", "sizes", "routes"])
def test_a_key_of_another_length_is_damage(index: Index, family: str) -> None:
    write = index.store.batch()
    key, value = next(index.store.scan(family))
    write.put(family, key + b"\0", value)
    index.store.write(write)
    index.close()
    with pytest.raises(StoreCorruptError):
        open_index(index.store.path)


@pytest.mark.parametrize("family", ["items", "stats"])
def test_an_ordinal_that_nobody_gave_is_damage(index: Index, family: str) -> None:
    write = index.store.batch()
    write.put(family, keys.U64.pack(2**63 + 7), next(index.store.scan(family))[1])
    index.store.write(write)
    index.close()
    with pytest.raises(StoreCorruptError):
        open_index(index.store.path)
