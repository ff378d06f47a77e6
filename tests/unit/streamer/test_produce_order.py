from __future__ import annotations

import json
from typing import TYPE_CHECKING

from streamer.eventlog_format import discover
from streamer.produce import _merged

if TYPE_CHECKING:
    from pathlib import Path


def line(name: str, at: object) -> bytes:
    return json.dumps({"item_id": name, "occurred_at": at}).encode()


def order(folder: Path, **files: list[bytes]) -> list[str]:
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_bytes(b"".join(each + b"\n" for each in lines))
    return [json.loads(event.line)["item_id"] for event in _merged(discover(folder))]


def test_streams_are_merged_by_time_and_items_come_first_at_equal_times(tmp_path: Path) -> None:
    created = [line("i1", 10), line("i2", 20), line("i3", "1970-01-01T00:00:00.030Z")]
    clicks = [line("e0", 5), line("e1", 10), line("e2", 25), line("e3", 30), line("e4", 40)]
    assert order(tmp_path, items=created, engagements=clicks) == ["e0", "i1", "e1", "i2", "e2", "i3", "e3", "e4"]


def test_lines_of_one_file_keep_their_order_whatever_their_times_say(tmp_path: Path) -> None:
    created = [line("i1", 10), line("back", 1), line("none", None), line("i2", 20)]
    clicks = [line("e1", 15)]
    assert order(tmp_path, items=created, engagements=clicks) == ["i1", "back", "none", "e1", "i2"]


def test_one_date_in_the_future_does_not_hold_back_the_rest_of_its_file(tmp_path: Path) -> None:
    created = [line("i1", 10), line("wrong", 99_999_999_999_999), line("i2", 20)]
    clicks = [line("e1", 15), line("e2", 25)]
    assert order(tmp_path, items=created, engagements=clicks) == ["i1", "wrong", "e1", "i2", "e2"]
