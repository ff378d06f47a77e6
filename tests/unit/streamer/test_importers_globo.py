from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import UsageError
from schemas.events import ENGAGEMENT, ITEM_EVENT
from streamer.eventlog_format import partition_of
from streamer.importers.base import ImportReport
from streamer.importers.globo import import_globo

if TYPE_CHECKING:
    from pathlib import Path

#        ts_ms, user, session, article
CLICKS = [
    (1_000, 7, 70, 4_100),
    (1_000, 8, 80, 33),
    (2_000, 7, 70, 33),
    (3_000, 9, 90, 5),
    (4_000, 7, 71, 4_100),
]


def write(path: Path, clicks: list[tuple[int, ...]], **changed: pa.Array | None) -> Path:
    columns = dict(zip(("ts_ms", "user_id", "session_id", "article_id"), zip(*clicks, strict=True), strict=True))
    table = {name: pa.array(column, pa.int64()) for name, column in columns.items()} | changed
    pq.write_table(pa.table({name: column for name, column in table.items() if column is not None}), path)
    return path


def events(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write(tmp_path / "clicks.parquet", CLICKS)


def test_articles_are_created_just_before_their_first_click(src, tmp_path):
    report = import_globo(src, tmp_path / "log")
    items = events(tmp_path / "log" / "items.jsonl")
    assert [(event["item_id"], event["occurred_at"]) for event in items] == [
        ("a33", 999),
        ("a4100", 999),
        ("a5", 2_999),
    ]
    assert report == ImportReport(items=3, updates=0, engagements=5, from_ms=999, to_ms=4_000)


def test_content_is_the_language_and_coarse_buckets_but_never_the_id(src, tmp_path):
    import_globo(src, tmp_path / "log")
    event = next(e for e in events(tmp_path / "log" / "items.jsonl") if e["item_id"] == "a4100")
    assert event == {
        "type": "item.created",
        "schema_version": 1,
        "item_id": "a4100",
        "occurred_at": 999,
        "language": "pt",
        "attributes": {
            "bucket_8": "512",
            "bucket_32": "128",
            "bucket_128": "32",
            "bucket_512": "8",
            "bucket_2048": "2",
        },
    }
    ITEM_EVENT.validate_python(event)


def test_clicks_are_engagements_in_order_with_ids_from_their_rows(src, tmp_path):
    import_globo(src, tmp_path / "log")
    clicks = events(tmp_path / "log" / "engagements.jsonl")
    assert clicks[2] == {
        "type": "engagement",
        "schema_version": 1,
        "event_id": "c2",
        "user_id": "u7",
        "session_id": "s70",
        "item_id": "a33",
        "kind": "click",
        "occurred_at": 2_000,
    }
    assert [click["event_id"] for click in clicks] == ["c0", "c1", "c2", "c3", "c4"]
    for click in clicks:
        ENGAGEMENT.validate_python(click)


def test_bounds_choose_clicks_and_keep_row_ids_and_true_first_clicks(src, tmp_path):
    report = import_globo(src, tmp_path / "log", from_ms=2_000, to_ms=4_000)
    assert [click["event_id"] for click in events(tmp_path / "log" / "engagements.jsonl")] == ["c2", "c3"]
    items = events(tmp_path / "log" / "items.jsonl")
    assert [(event["item_id"], event["occurred_at"]) for event in items] == [("a33", 999), ("a5", 2_999)]
    assert report == ImportReport(items=2, updates=0, engagements=2, from_ms=999, to_ms=3_000)


def test_a_directory_of_files_reads_like_one_file(src, tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "0.parquet", CLICKS[:2])
    write(tmp_path / "parts" / "1.parquet", CLICKS[2:])
    told: list[int] = []
    import_globo(src, tmp_path / "a")
    import_globo(tmp_path / "parts", tmp_path / "b", progress=told.append)
    for name in ("items.jsonl", "engagements.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert told == [2, 3]


def test_partitions_together_hold_the_same_events_each_in_order(src, tmp_path):
    import_globo(src, tmp_path / "one")
    import_globo(src, tmp_path / "three", partitions=3)
    for stream in ("items", "engagements"):
        whole = (tmp_path / "one" / f"{stream}.jsonl").read_bytes().splitlines()
        for number in range(3):
            part = (tmp_path / "three" / f"{stream}-{number:05d}.jsonl").read_bytes().splitlines()
            expected = [line for line in whole if partition_of(orjson.loads(line)["item_id"], 3) == number]
            assert part == expected


@pytest.mark.parametrize(
    ("clicks", "changed", "message"),
    [
        (CLICKS[::-1], {}, r"clicks\.parquet is not sorted by ts_ms"),
        (CLICKS, {"article_id": None}, r"clicks\.parquet lacks the column article_id"),
        (CLICKS, {"user_id": pa.array(["a", "b", "c", "d", "e"])}, r"column user_id is string with 0 nulls"),
        (CLICKS, {"ts_ms": pa.array([1, 2, None, 3, 4])}, r"column ts_ms is int64 with 1 nulls"),
    ],
)
def test_bad_clicks_are_named_and_leave_no_log(tmp_path, clicks, changed, message):
    write(tmp_path / "clicks.parquet", clicks, **changed)
    with pytest.raises(UsageError, match=message):
        import_globo(tmp_path / "clicks.parquet", tmp_path / "log")
    assert list((tmp_path / "log").iterdir()) == []


def test_files_of_a_directory_that_overlap_in_time_are_refused(tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "0.parquet", CLICKS)
    write(tmp_path / "parts" / "1.parquet", CLICKS)
    with pytest.raises(UsageError, match=r"1\.parquet is not sorted"):
        import_globo(tmp_path / "parts", tmp_path / "log")


def test_what_is_no_parquet_is_named(tmp_path):
    (tmp_path / "clicks.parquet").write_bytes(b"ts_ms,user_id\n")
    for path in (tmp_path / "clicks.parquet", tmp_path / "missing.parquet"):
        with pytest.raises(UsageError, match=rf"cannot read .*{path.name} as Parquet"):
            import_globo(path, tmp_path / "log")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no \.parquet file"):
        import_globo(tmp_path / "empty", tmp_path / "log")


def test_bounds_without_clicks_are_refused(src, tmp_path):
    with pytest.raises(UsageError, match="has no clicks from 9000 to None"):
        import_globo(src, tmp_path / "log", from_ms=9_000)
