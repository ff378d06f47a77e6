"""The benchmarks' own producer: what it puts together is what any client reads."""

from kafka.record import MemoryRecords

from benchmarks.sending import prepared, record_batch


def test_a_record_batch_reads_as_what_was_put_in():
    rows = [
        (None if n % 5 == 0 else b"key-%d" % n, b"x" * (0 if n == 0 else n * 37 % 20_000)) for n in range(300)
    ]  # lengths and places on both sides of where their encoding grows by a byte

    data = record_batch([prepared(key, value) for key, value in rows], 1_700_000_000_123)

    (batch,) = iter(MemoryRecords(data).next_batch, None)
    assert batch.validate_crc()
    read = list(batch)
    assert [(record.key, record.value) for record in read] == rows
    assert [record.offset for record in read] == list(range(300))
    assert {record.timestamp for record in read} == {1_700_000_000_123}
