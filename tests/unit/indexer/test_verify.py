"""Each kind of damage is seen and named: stores corrupted by hand, one for each invariant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from indexer import keys
from indexer.index import Index
from indexer.keys import LeafRecord, LeafState
from indexer.write_batch import Batch
from schemas.errors import StoreCorruptError
from schemas.replies import VerifyReply
from tests.builders import Record, batch_of, check_store, fill, open_index, rebalance, store_meta, upserts, vector_of


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Forty items, two deleted, some engaged, one engagement waiting; balanced and sound."""
    with open_index(tmp_path / "store") as opened:
        fill(opened, range(40))
        opened.writer.apply(
            batch_of(
                [
                    Record("items-0", 40, "i0", 5_000),
                    Record("items-0", 41, "i1", 5_000),
                    Record("engagements-0", 0, "i2", 5_000, kind="click"),
                    Record("engagements-0", 1, "nobody", 5_000, kind="click"),
                ]
            )
        )
        rebalance(opened)
        assert check_store(opened.store).ok
        yield opened


def damage(index: Index, change: Batch) -> VerifyReply:
    index.store.write(change)
    return check_store(index.store)


def named(reply: VerifyReply, invariant: str, *words: str) -> bool:
    return not reply.ok and any(
        violation.invariant == invariant and all(word in violation.detail for word in words)
        for violation in reply.violations
    )


def posting_of(index: Index, ordinal: int, facet: int = 0) -> tuple[int, bytes]:
    leaf = int(index.view.items["leaf"][ordinal, facet])
    return leaf, keys.POSTING.pack(facet, leaf, ordinal)


def test_i1_names_a_lost_posting(index: Index) -> None:
    leaf, key = posting_of(index, 5)
    change = index.store.batch()
    change.delete_many("postings", [key])
    reply = damage(index, change)
    assert named(reply, "I1", "ordinal 5", "facet 0", f"leaf {leaf}", "no posting")
    assert named(reply, "I2", f"leaf {leaf}")


@pytest.mark.parametrize("ordinal", [0, 3, 999], ids=["deleted item", "another leaf's item", "no item"])
def test_i1_names_an_orphan_posting(index: Index, ordinal: int) -> None:
    leaf = next(leaf for leaf in index.view.facets[1].alive().tolist() if leaf != index.view.items["leaf"][3, 1])
    change = index.store.batch()
    change.put_empty("postings", [keys.POSTING.pack(1, leaf, ordinal)])
    assert named(damage(index, change), "I1", f"ordinal {ordinal} ", "facet 1", "belongs to no live item")


def test_i1_names_an_item_that_is_in_one_family_only(index: Index) -> None:
    change = index.store.batch()
    change.delete_many("ids", [b"i7"])
    change.put("ids", b"ghost", keys.U64.pack(500))
    reply = damage(index, change)
    assert named(reply, "I1", "'i7'", "items only")
    assert named(reply, "I1", "'ghost'", "ids only")


def test_i1_names_two_ordinals_of_one_id(index: Index) -> None:
    change = index.store.batch()
    change.put("ids", b"i7", keys.U64.pack(8))
    assert named(damage(index, change), "I1", "'i7'", "two ordinals")


@pytest.mark.parametrize("family", ["vectors", "content"])
def test_i1_names_what_a_live_item_lacks_and_a_dead_one_has(index: Index, family: str) -> None:
    change = index.store.batch()
    change.delete_many(family, [keys.U64.pack(5)])
    change.put(family, keys.U64.pack(0), b"left over")
    reply = damage(index, change)
    assert named(reply, "I1", "live ordinal 5 has no", family)
    assert named(reply, "I1", f"{family} of ordinal 0", "not live")


def test_i1_names_counters_of_nobody(index: Index) -> None:
    change = index.store.batch()
    change.put("stats", keys.U64.pack(500), index.store.get("stats", keys.U64.pack(2)) or b"")
    assert named(damage(index, change), "I1", "counters of ordinal 500")


def test_i1_names_an_engagement_that_waits_for_a_known_item(index: Index) -> None:
    waiting = Record("engagements-0", 0, "i5", 5_000, kind="click")
    change = index.store.batch()
    change.put("pending", keys.pending_key("i5", "engagements-0", 0), waiting.encoded)
    assert named(damage(index, change), "I1", "'i5'", "still waits")


def test_i2_names_a_wrong_size(index: Index) -> None:
    leaf = int(index.view.facets[0].alive()[0])
    page, at = divmod(leaf, keys.PAGE)
    key = keys.FACET_U32.pack(0, page)
    values = np.frombuffer(index.store.get("sizes", key) or b"", "<u4").copy()
    values[at] += 1
    change = index.store.batch()
    change.put("sizes", key, values.tobytes())
    assert named(
        damage(index, change), "I2", f"facet 0 leaf {leaf}", f"counter {values[at]}", f"postings {values[at] - 1}"
    )


@pytest.mark.parametrize(("name", "wrong"), [("items_live", 39), ("items_deleted", 7)])
def test_i2_names_a_wrong_total(index: Index, name: str, wrong: int) -> None:
    change = index.store.batch()
    change.totals(index.store.totals().model_copy(update={name: wrong}))
    assert named(damage(index, change), "I2", f"totals say {wrong}")


def test_i3_names_a_route_to_a_dead_leaf(index: Index) -> None:
    raw = int(index.view.items["raw"][5, 0])
    change = index.store.batch()
    change.put(
        "routes", keys.FACET_U32.pack(0, raw), np.array([index.view.items["leaf"][5, 0], 77_777], "<u4").tobytes()
    )
    assert named(damage(index, change), "I3", f"raw index {raw}", "leaf 77777", "does not exist")


def test_i3_names_a_leaf_that_no_route_reaches(index: Index) -> None:
    leaf = index.view.totals.next_leaf[0] + 5
    change = index.store.batch()
    change.put("leaves", keys.FACET_U32.pack(0, leaf), keys.leaf_value(LeafRecord(0, 0, 0, np.zeros(4, np.float32))))
    assert named(damage(index, change), "I3", f"leaf {leaf}", "reached by no route")


def test_i3_names_an_item_outside_its_candidates(index: Index) -> None:
    raw, leaf = int(index.view.items["raw"][5, 0]), int(index.view.items["leaf"][5, 0])
    other = next(each for each in index.view.facets[0].alive().tolist() if each != leaf)
    change = index.store.batch()
    change.put("routes", keys.FACET_U32.pack(0, raw), np.array([other], "<u4").tobytes())
    assert named(damage(index, change), "I3", f"raw index {raw}", f"leaf {leaf}", "not among")


def test_i3_names_a_route_of_an_impossible_raw_index(index: Index) -> None:
    leaf = int(index.view.facets[0].alive()[0])
    change = index.store.batch()
    change.put("routes", keys.FACET_U32.pack(0, 99), np.array([leaf], "<u4").tobytes())
    assert named(damage(index, change), "I3", "raw index 99", "cannot produce")


def test_i4_names_a_leaf_out_of_bounds_unless_it_is_marked(index: Index) -> None:
    fill(index, [3] * 30, start=100)
    reply = check_store(index.store)
    assert named(reply, "I4", "bounds are 2 to 8", "state normal")
    waiting = check_store(index.store, allow_unbalanced=True)
    assert waiting.ok
    assert waiting.checked.awaiting > 0
    change = index.store.batch()
    for facet in range(2):
        view = index.view.facets[facet]
        [leaf] = [each for each in view.alive().tolist() if view.sizes()[each] > 8]
        record = LeafRecord(LeafState.UNSPLITTABLE, 1, 30, view.leaves["centroid"][leaf])
        change.put("leaves", keys.FACET_U32.pack(facet, leaf), keys.leaf_value(record))
    assert damage(index, change).ok


def test_i4_a_mark_excuses_growth_by_half_and_no_more(index: Index) -> None:
    fill(index, [3] * 30, start=100)
    change = index.store.batch()
    for facet in range(2):
        view = index.view.facets[facet]
        [leaf] = [each for each in view.alive().tolist() if view.sizes()[each] > 8]
        record = LeafRecord(LeafState.UNSPLITTABLE, 1, 10, view.leaves["centroid"][leaf])
        change.put("leaves", keys.FACET_U32.pack(facet, leaf), keys.leaf_value(record))
    assert named(damage(index, change), "I4", "state unsplittable")


def test_i4_only_the_last_leaf_may_be_marked_as_having_few_items(index: Index) -> None:
    index.writer.apply(batch_of([Record("items-0", 200 + row, f"i{row}", 10**6) for row in range(2, 39)]))
    view = index.view.facets[0]
    leaf = next(each for each in view.alive().tolist() if view.sizes()[each] < 2)
    change = index.store.batch()
    record = LeafRecord(LeafState.FEW_ITEMS, 1, 0, view.leaves["centroid"][leaf])
    change.put("leaves", keys.FACET_U32.pack(0, leaf), keys.leaf_value(record))
    assert named(damage(index, change), "I4", f"leaf {leaf} ", "state few_items")


def test_i5_names_an_item_and_a_waiting_engagement_from_beyond_the_offsets(index: Index) -> None:
    change = index.store.batch()
    change.offset("items-0", 42 - 1)
    change.offset("engagements-0", 1)
    reply = damage(index, change)
    assert named(reply, "I5", "items-0 offset 41", "next offset is 41")
    assert named(reply, "I5", "pending", "engagements-0 offset 1", "next offset is 1")


def test_i6_names_what_differs_from_the_artifact(index: Index) -> None:
    from indexer.verify import verify

    reply = verify(index.store, expected=store_meta(model_hash="other", codebook_hash="another"))
    assert named(reply, "I6", "model_hash", "'model'", "'other'")
    assert named(reply, "I6", "codebook_hash", "'codebook'", "'another'")


def test_i7_names_an_altered_code(index: Index) -> None:
    value = bytearray(index.store.get("items", keys.U64.pack(5)) or b"")
    value[keys.ITEM_FIXED.size] ^= 1
    change = index.store.batch()
    change.put("items", keys.U64.pack(5), bytes(value))
    assert named(damage(index, change), "I7", "ordinal 5", "stored is")


def test_i7_names_content_that_is_not_what_was_encoded(index: Index) -> None:
    change = index.store.batch()
    change.put("content", keys.U64.pack(5), Record("items-0", 5, "i5", 1_005, vector_of(999)).encoded)
    assert named(damage(index, change), "I7", "ordinal 5")


def test_what_was_not_checked_is_said(index: Index) -> None:
    from indexer.verify import verify

    reply = verify(index.store)
    assert reply.ok
    assert [note.partition(" ")[0] for note in reply.notes] == ["I6", "I7"]
    assert reply.checked.reencoded == 0
    assert check_store(index.store, sample=10).checked.reencoded == 10


def test_many_violations_are_counted_and_a_few_are_shown(index: Index) -> None:
    change = index.store.batch()
    change.put_empty("postings", [keys.POSTING.pack(0, 3, 1_000 + row) for row in range(50)])
    reply = damage(index, change)
    assert reply.violations_total >= 51
    assert len(reply.violations) < 10
    assert named(reply, "I1", "and 49 more")


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("items", keys.U64.pack(5), b"short"),
        ("postings", b"\0odd", b""),
        ("leaves", keys.FACET_U32.pack(0, 0), b"x"),
        ("leaves", keys.FACET_U32.pack(0, 0), b"\0" * 17),
        ("vectors", b"odd", b""),
        ("ids", b"i7", b"odd"),
        ("sizes", keys.FACET_U32.pack(0, 0), b"odd"),
        ("routes", keys.FACET_U32.pack(0, 3), b"odd"),
        ("stats", b"odd", b""),
        ("pending", b"odd", b""),
        ("offsets", b"items-0", b"odd"),
        ("meta", b"totals", b"{}"),
        ("meta", b"store", b"{}"),
    ],
)
def test_what_does_not_decode_is_a_clear_error(index: Index, family: str, key: bytes, value: bytes) -> None:
    change = index.store.batch()
    change.put(family, key, value)
    index.store.write(change)
    with pytest.raises(StoreCorruptError):
        check_store(index.store)


def test_an_empty_store_is_sound(tmp_path: Path) -> None:
    with open_index(tmp_path / "store") as index:
        assert check_store(index.store).ok
        fill(index, [])
        assert check_store(index.store).ok
        index.writer.apply(batch_of(upserts([])))
        rebalance(index)
        assert check_store(index.store).ok
