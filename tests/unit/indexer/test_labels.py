"""Labels: numbered sets, filters decided once for each, and what a store keeps of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.labels import UNLABELLED, Filter, Labels, LabelTable, decode, encode, table_of
from indexer.loading import load_view
from indexer.report import item
from indexer.store import Store
from indexer.write_batch import Batch
from schemas.errors import StoreCorruptError, StoreMismatchError
from tests.builders import assert_sound, batch_of, codewords, open_index, rebalance, upserts

WORDS = st.sampled_from(["news", "sport", "art", "film"])
SETS = st.builds(Labels.of, st.sampled_from([None, "", "pt", "en"]), st.lists(WORDS))
FILTERS = st.builds(
    Filter, st.frozensets(WORDS), st.frozensets(WORDS), st.frozensets(st.sampled_from(["pt", "en", "fr"]))
)


@given(st.lists(SETS), FILTERS)
def test_a_filter_is_decided_for_each_set_as_it_comes(sets, wanted):
    table = LabelTable()
    numbers = []
    for each in sets:
        number, fresh = table.number([each])
        table.add(fresh)
        numbers += number.tolist()
        allowed = table.allowed(wanted)
        assert len(allowed) == len(table)
    assert [table[number] for number in numbers] == sets
    allowed = table.allowed(wanted)
    for number, each in zip(numbers, sets, strict=True):
        has = set(each.categories)
        expected = (not wanted.languages or each.language in wanted.languages) and not has & wanted.not_categories
        expected &= not wanted.categories or bool(has & wanted.categories)
        assert bool(allowed[number]) == expected


@given(SETS)
def test_what_is_stored_is_read(labels):
    assert decode(encode(labels)) == labels


def test_one_set_counts_once_in_a_batch():
    table = LabelTable()
    numbers, fresh = table.number([Labels("pt"), UNLABELLED, Labels("pt"), Labels("en", ("a",))])
    assert numbers.tolist() == [1, 0, 1, 2]
    assert fresh == [Labels("pt"), Labels("en", ("a",))]


@pytest.mark.parametrize("value", [b"", b"[]", b"[1", b'["pt", 3]', b"null"])
def test_damage_is_named(value):
    with pytest.raises(StoreCorruptError, match="do not decode"):
        decode(value)
    with pytest.raises(StoreCorruptError, match="missing"):
        table_of(iter([(2, encode(Labels("pt")))]))


def test_items_keep_their_labels_through_updates_splits_and_loading(tmp_path):
    with open_index(tmp_path / "store") as index:
        records = upserts([seed % 5 for seed in range(40)])
        batch = batch_of(records)
        labels = [Labels.of("pt" if at % 2 else None, [f"c{at % 3}"]) for at in range(40)]
        index.writer.apply(replace(batch, items=replace(batch.items, labels=labels)))
        rebalance(index)
        again = batch_of(
            [records[0]._replace(offset=40, at=9_000), records[1]._replace(offset=41, at=9_000, vector=None)]
        )
        index.writer.apply(replace(again, items=replace(again.items, labels=[Labels("en")])))
        view = index.view
        named = {item_id: view.labels[view.items["labels"][at]] for at, item_id in enumerate(view.ids)}
        expected = dict(zip((record.item_id for record in records), labels, strict=True))
        assert named == expected | {"i0": Labels("en"), "i1": UNLABELLED}
        loaded = load_view(index.store, codewords())
        assert loaded.items["labels"].tolist() == view.items["labels"].tolist()
        assert [*loaded.labels] == [*view.labels]
        assert_sound(index.store)
        assert [index.store.label(number) for number in range(len(loaded.labels))] == [*loaded.labels]
        with pytest.raises(StoreCorruptError, match="do not decode"):
            index.store.label(len(loaded.labels))
        reply = item({0: index.store}, "i2")
        assert (reply.language, reply.categories) == (None, ["c2"])


def test_a_store_of_another_format_is_refused(tmp_path):
    open_index(tmp_path / "store").close()
    with Store.open(tmp_path / "store") as store:
        old = store.get("meta", b"store").replace(b'"format_version":2', b'"format_version":1')
        write: Batch = store.batch()
        write.put("meta", b"store", old)
        store.write(write)
        with pytest.raises(StoreMismatchError, match="format 1, this program reads 2; replay"):
            store.meta()
