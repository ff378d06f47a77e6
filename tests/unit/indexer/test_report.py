"""What an on-call engineer is told: the same that the live view holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from indexer import keys, report
from indexer.index import Index
from indexer.logical_state import LogicalState, differences, logical_state
from indexer.retrieval.retrieve import fan_out
from indexer.retrieval.store_reader import StoreReader
from schemas.config import RetrievalConfig
from schemas.errors import NotFoundError, StoreCorruptError
from tests.builders import CODEWORDS, FACETS, Record, assign, batch_of, fill, open_index, rebalance, vectors_of


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with open_index(tmp_path / "store") as opened:
        fill(opened, range(50))
        opened.writer.apply(
            batch_of(
                [
                    Record("items-0", 50, "i0", 5_000),
                    Record("items-0", 51, "i1", 5),  # late
                    Record("engagements-3", 7, "i2", 5_000, kind="click", value=2.0),
                    Record("engagements-3", 8, "i2", 5_000, kind="like"),
                    Record("engagements-3", 9, "i2", 5_000, kind="click"),
                    Record("engagements-3", 10, "nobody", 5_000, kind="click"),
                ],
                dead_letters=4,
            )
        )
        rebalance(opened)
        yield opened


def test_stats_count_what_is_there(index: Index) -> None:
    found = report.stats({0: index.store})
    assert (found.items.live, found.items.deleted, found.items.stale) == (49, 1, 1)
    assert (found.engagements.applied, found.engagements.pending, found.dead_letters) == (3, 1, 4)
    assert found.offsets == {"items-0": 52, "engagements-3": 11}
    assert found.splits + found.merges > 0
    assert found.journal_last is not None
    assert found.journal_last["seq"] == index.view.totals.journal_seq - 1
    assert found.disk_bytes > 0
    for facet in found.facets:
        view = index.view.facets[facet.facet]
        sizes = view.sizes()[view.alive()]
        assert facet.leaves == len(sizes)
        assert facet.items == 49
        assert (facet.size.min, facet.size.max) == (sizes.min(), sizes.max())
        assert facet.bounds == (2, 8)
        assert facet.within_bounds_share == 1
        assert facet.raw_active_share == round((view.routes.lengths > 0).sum() / CODEWORDS**2, 6)


def test_an_item_is_told_with_its_codes_leaves_counts_and_source(index: Index) -> None:
    found = report.item({0: index.store}, "i2")
    assert (found.item_id, found.ordinal, found.state, found.created_at) == ("i2", 2, "live", 1_002)
    assert found.counters == {"click": 2, "like": 1}
    assert found.last_engaged_at == 5_000
    assert (found.source.topic, found.source.partition, found.source.offset) == ("items", 0, 2)
    raw = assign(
        vectors_of(
            [
                Record(
                    "",
                    0,
                    "",
                    0,
                    tuple(
                        np.concatenate(
                            [index.view.vectors(np.array([2]), facet)[0] for facet in range(FACETS)]
                        ).tolist()
                    ),
                ).event
            ]
        )
    )[0]
    for facet in range(FACETS):
        row = found.facets[facet]
        assert row.raw == raw[facet] == row.code[0] * CODEWORDS + row.code[1]
        assert row.leaf == index.view.items["leaf"][2, facet]
    assert set(found.decayed) == {"60", "3600"}


def test_a_deleted_item_is_told_and_an_unknown_one_is_not_found(index: Index) -> None:
    assert report.item({0: index.store}, "i0").state == "deleted"
    assert report.item({0: index.store}, "i0").facets == []
    with pytest.raises(NotFoundError, match="'nobody' is not in the index"):
        report.item({0: index.store}, "nobody")


NO_TEXT = "\udcff"
"""What a byte on the command line becomes that is no utf-8."""


def test_a_name_that_is_no_text_is_unknown_like_any_other(index: Index) -> None:
    with pytest.raises(NotFoundError, match="udcff"):
        report.item({0: index.store}, NO_TEXT)
    reader = StoreReader(index.store)
    assert reader.locate(["i1", NO_TEXT]).missing == [NO_TEXT]
    assert reader.ordinals([NO_TEXT, "i1"]).tolist() == [-1, 1]


def test_an_item_that_was_cut_is_damage(index: Index) -> None:
    write = index.store.batch()
    write.put("items", keys.U64.pack(1), (index.store.get("items", keys.U64.pack(1)) or b"")[:6])
    index.store.write(write)
    reader = StoreReader(index.store)
    for ask in (reader.hot, lambda: reader.created_at(np.array([1]))):
        with pytest.raises(StoreCorruptError, match="a record in items is shorter"):
            ask()


def test_a_leaf_is_told_with_its_members(index: Index) -> None:
    view = index.view.facets[1]
    leaf = int(view.alive()[0])
    found = report.leaf(index.store, 1, leaf)
    assert [member.ordinal for member in found.items] == sorted(view.members.row(leaf).tolist())
    assert [member.item_id for member in found.items] == [f"i{member.ordinal}" for member in found.items]
    assert found.size == view.sizes()[leaf]
    assert found.raw_indices == len(view.raws.row(leaf))


@pytest.mark.parametrize(("facet", "leaf"), [(0, 99_999), (FACETS, 0), (-1, 0), (0, -1), (0, 2**40)])
def test_a_leaf_that_is_not_there_is_not_found(index: Index, facet: int, leaf: int) -> None:
    with pytest.raises(NotFoundError, match="has no leaf"):
        report.leaf(index.store, facet, leaf)


def test_the_largest_leaves_come_first(index: Index) -> None:
    rows = report.leaves({0: index.store}, None, 1_000)
    assert len(rows) == sum(len(facet.alive()) for facet in index.view.facets)
    assert [row.size for row in rows] == sorted((row.size for row in rows), reverse=True)
    assert report.leaves({0: index.store}, None, 3) == rows[:3]
    assert {row.facet for row in report.leaves({0: index.store}, 1, 1_000)} == {1}
    with pytest.raises(NotFoundError, match="there is no facet 9; this index has facets 0 to 1"):
        report.leaves({0: index.store}, 9, 1)


def test_a_query_is_told_as_it_was_answered(index: Index) -> None:
    reader = StoreReader(index.store)
    found = fan_out({3: reader}, ["i5", "gone"], RetrievalConfig(k=7), 10_000)
    told = report.query_reply(["i5", "gone"], found)
    assert told.missing == ["gone"]
    assert [row.item_id for row in told.results] == found.item_ids
    assert [row.score for row in told.results] == np.round(found.scores, 6).tolist()
    assert {(row.facet, row.leaf) for row in told.results} <= {(row.facet, row.leaf) for row in told.indices}


# -- the logical state -------------------------------------------------------------------------------------------------


def test_a_store_means_the_same_as_itself_and_rebalancing_changes_nothing(index: Index) -> None:
    before = logical_state(index.store)
    fill(index, [], start=0)
    assert not differences(before, logical_state(index.store))
    fill(index, [3] * 30, start=100)
    unbalanced = logical_state(index.store)
    rebalance(index)
    assert not differences(unbalanced, logical_state(index.store))


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (
            [Record("items-0", 60, "i5", 9_000)],
            ["items: 'i5' is", "items_live", "offsets: 'items-0' is 61, expected 52"],
        ),
        (
            [Record("engagements-3", 11, "i5", 9_000, kind="click")],
            ["items: 'i5'", "('click', 1)", "engagements_applied"],
        ),
        ([Record("engagements-3", 11, "who", 9_000, kind="click")], ["pending: ('engagements-3', 11) should not be"]),
        ([Record("engagements-3", 11, "i2", 5_001, kind="click")], ["('click', 3)", "'stream_time_ms' is 5001"]),
    ],
)
def test_every_difference_is_named(index: Index, records: list[Record], words: list[str]) -> None:
    before = logical_state(index.store)
    index.writer.apply(batch_of(records))
    said = "\n".join(differences(before, logical_state(index.store)))
    for word in words:
        assert word in said


def test_no_more_differences_are_told_than_asked_for(index: Index) -> None:
    nothing = LogicalState({}, {}, {}, {}, {})
    found = logical_state(index.store)
    assert len(differences(nothing, found, most=3)) == 3
    assert "is missing, expected" in differences(found, nothing)[0]
