"""An event log on disk as training arrays."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from schemas.errors import UsageError
from streamer.training_data import read_training_log


def item(item_id, at, title="t", kind="created", **fields):
    return {"type": f"item.{kind}", "item_id": item_id, "occurred_at": at, "title": title, **fields}


def deleted(item_id, at):
    return {"type": "item.deleted", "item_id": item_id, "occurred_at": at}


def click(user, item_id, at, **fields):
    return {"type": "engagement", "user_id": user, "item_id": item_id, "occurred_at": at, "kind": "click", **fields}


def write(path, items, engagements, *, raw_items=b""):
    path.mkdir(exist_ok=True)
    lines = "".join(json.dumps(event) + "\n" for event in items).encode()
    (path / "items.jsonl").write_bytes(lines + raw_items)
    (path / "engagements.jsonl").write_text("".join(json.dumps(event) + "\n" for event in engagements))
    return path


@pytest.fixture
def events(tmp_path):
    return write(
        tmp_path / "log",
        [
            item("b", 20),
            item("a", 10, "old"),
            item("a", 50, "new", "updated"),
            item("late", 90, "first"),
            item("late", 95, "second", "updated"),
            item("gone", 5),
            deleted("gone", 60),
        ],
        [
            click("u1", "b", 40, session_id="s", value=2.5),
            click("u2", "a", 30, session_id="s"),
            click("u1", "gone", 35),
            click("u1", "never", 36),
            click("u2", "late", 96) | {"kind": "like"},
        ],
    )


def test_items_are_ordered_by_creation_and_engagements_by_time(events):
    log = read_training_log(events)
    assert log.item_ids == ("a", "b", "late")
    assert log.created_at.tolist() == [10, 20, 90]
    assert [log.item_ids[i] for i in log.item] == ["a", "b", "late"]
    assert log.time.tolist() == [30, 40, 96]
    assert log.users == 2
    assert [log.kinds[k] for k in log.kind] == ["click", "click", "like"]
    assert np.isnan(log.value[0])
    assert log.value[1] == np.float32(2.5)
    assert log.skipped == {"bad_record": 0, "after_until": 0, "unknown_item": 2, "deleted_item": 1}


def test_equal_session_names_of_two_users_are_two_sessions(events):
    session = read_training_log(events).session
    assert session[0] != session[1]
    assert session[2] == -1


def test_nothing_at_or_after_until_is_read_and_a_later_delete_has_not_happened(events):
    log = read_training_log(events, until_ms=50)
    assert log.item_ids == ("gone", "a", "b")
    assert log.contents[1].title == "old"
    assert log.time.tolist() == [30, 35, 40]
    assert log.skipped["after_until"] == 5


def test_content_is_the_latest_by_default_and_bounded_on_request(events):
    titles = {
        i: c.title
        for i, c in zip(*(getattr(read_training_log(events), n) for n in ("item_ids", "contents")), strict=True)
    }
    assert titles == {"a": "new", "b": "t", "late": "second"}
    log = read_training_log(events, content_until_ms=50)
    assert [content.title for content in log.contents] == ["old", "t", "first"]


def test_the_later_time_wins_whatever_the_order_of_lines_and_the_later_line_among_equals(tmp_path):
    path = write(tmp_path / "log", [item("a", 9, "x", "updated"), item("a", 3, "y"), item("a", 9, "z", "updated")], [])
    log = read_training_log(path)
    assert log.contents[0].title == "z"
    assert log.created_at.tolist() == [3]


def test_an_item_created_anew_after_its_delete_is_there_from_then_on(tmp_path):
    path = write(tmp_path / "log", [item("a", 1, "one"), deleted("a", 2), item("a", 3, "two")], [])
    log = read_training_log(path)
    assert log.created_at.tolist() == [3]
    assert log.contents[0].title == "two"


def test_bad_lines_are_counted_and_skipped(tmp_path):
    path = write(
        tmp_path / "log",
        [item("a", 1)],
        [click("u", "a", 2), {"type": "engagement"}, item("b", 1)],
        raw_items=b'not json\n{"type":"item.created"}\n\xff\xfe\nnull\n',
    )
    log = read_training_log(path)
    assert log.skipped["bad_record"] == 6
    assert len(log.item_ids) == len(log.user) == 1


def test_compressed_partitions_read_like_one_plain_file(events, tmp_path):
    plain = read_training_log(events)
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("items", "engagements"):
        lines = (events / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
        for number in range(2):
            with gzip.open(parts / f"{name}-{number:05d}.jsonl.gz", "wb") as file:
                file.writelines(lines[number::2])
    log = read_training_log(parts)
    assert log.item_ids == plain.item_ids
    assert log.contents == plain.contents
    assert np.array_equal(log.item, plain.item)
    assert np.array_equal(log.time, plain.time)


def test_progress_counts_every_line(events):
    seen: list[int] = []
    read_training_log(events, progress=seen.append)
    assert sum(seen) == 12


def test_a_directory_without_a_log_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no items"):
        read_training_log(tmp_path)
