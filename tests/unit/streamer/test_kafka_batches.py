from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecordsBuilder

from streamer.sources.kafka_batches import NOTHING, Batch, Columns, _decode_old, from_records, joined

NONE, GZIP, ZSTD = 0, 1, 4
ROWS = st.lists(
    st.tuples(
        st.integers(0, 3),  # offsets skipped before it
        st.integers(0, 1 << 45),
        st.none() | st.binary(max_size=20),
        st.none() | st.binary(max_size=400),
        st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=3),
    ),
    min_size=1,
    max_size=50,
)


def batch_of(rows: list, compression: int = NONE, base: int = 0, magic: int = 2) -> bytearray:
    builder = MemoryRecordsBuilder(magic, compression, 1 << 20)
    for skipped, timestamp, key, value, headers in rows:
        builder.skip(skipped)
        builder.append(timestamp, key, value, headers)
    builder.close()
    data = bytearray(builder.buffer())
    struct.pack_into(">q", data, 0, base)
    return data


@given(ROWS, st.sampled_from([NONE, GZIP, ZSTD]), st.integers(0, 1 << 60))
def test_columns_equal_what_kafka_python_reads(rows: list, compression: int, base: int) -> None:
    data = batch_of(rows, compression, base)
    columns = Batch(DefaultRecordBatch(data), 0).decode()
    expected = [(record.offset, record.key, record.value) for record in DefaultRecordBatch(data)]
    assert list(zip(columns.offsets, columns.keys, columns.values, strict=True)) == expected
    assert len(columns) == len(expected) == len(Batch(DefaultRecordBatch(data), 0))


@given(ROWS, st.integers(0, 250))
def test_a_batch_starts_at_the_wanted_offset(rows: list, since: int) -> None:
    data = batch_of(rows, base=50)
    columns = Batch(DefaultRecordBatch(data), since).decode()
    expected = [record.offset for record in DefaultRecordBatch(data) if record.offset >= since]
    assert list(columns.offsets) == expected
    assert len(columns.keys) == len(columns.values) == len(expected)


def test_offsets_without_gaps_cost_nothing() -> None:
    batch = Batch(DefaultRecordBatch(batch_of([(0, 1, b"k", b"v", [])] * 5, base=7)), 9)
    assert batch.decode().offsets == range(9, 12)
    assert batch.offset == 11


@given(ROWS, st.data())
def test_bytes_that_are_no_records_are_corrupt_and_nothing_else(rows: list, data: st.DataObject) -> None:
    good = batch_of(rows)
    start = DefaultRecordBatch.HEADER_STRUCT.size
    position = data.draw(st.integers(start, len(good) - 1))
    bad = bytearray(good)
    bad[position] = data.draw(st.integers(0, 255))
    bad = bad[: data.draw(st.integers(start, len(bad)))]
    try:
        columns = Batch(DefaultRecordBatch(bad), 0).decode()
    except CorruptRecordError:
        return
    assert len(columns) == len(rows)  # a changed byte inside a key or value is the checksum's to find


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_batch_cut_short_is_corrupt(cut: int) -> None:
    data = batch_of([(0, 1, b"key", b"v" * 200, [])] * 3)
    with pytest.raises(CorruptRecordError, match="offset 0"):
        Batch(DefaultRecordBatch(data[:-cut]), 0).decode()


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("compression", [NONE, GZIP])
def test_formats_from_before_kafka_0_11_are_read(magic: int, compression: int) -> None:
    builder = MemoryRecordsBuilder(magic, compression, 1 << 20)
    for n in range(5):
        builder.append(1, b"k%d" % n, None if n == 2 else b"v")
    builder.close()
    found = [_decode_old(batch, 1) for batch in MemoryRecords(bytes(builder.buffer()))]
    columns = joined([each for each in found if len(each)])
    assert list(columns.offsets) == [1, 2, 3, 4]
    assert columns.keys == [b"k1", b"k2", b"k3", b"k4"]
    assert columns.values == [b"v", None, b"v", b"v"]


def test_pieces_are_joined_as_ranges_when_they_touch_and_as_lists_when_not() -> None:
    first = Columns(range(3, 5), [b"a", b"b"], [b"1", b"2"])
    after = Columns(range(5, 6), [b"c"], [None])
    apart = Columns([9, 12], [None, b"e"], [b"4", b"5"])
    assert joined([]) is NOTHING
    assert joined([first]) is first
    assert joined([first, after]) == Columns(range(3, 6), [b"a", b"b", b"c"], [b"1", b"2", None])
    assert joined([first, apart]).offsets == [3, 4, 9, 12]
    assert joined([first, Columns(range(7, 8), [b"x"], [b"y"])]).offsets == [3, 4, 7]


def test_plain_records_become_the_same_columns() -> None:
    data = batch_of([(1, 1, b"k", b"v", []), (2, 1, None, None, [])])
    assert from_records(list(DefaultRecordBatch(data))) == Batch(DefaultRecordBatch(data), 0).decode()
