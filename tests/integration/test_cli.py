"""The commands as a user types them, on the shipped data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamer.importers import examples_dir


def facetstream(*args: str | Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "streamer.cli", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of MovieLens small, built with the commands of the README."""
    path = tmp_path_factory.mktemp("cli")
    facetstream("import", "movielens", examples_dir(), path / "events")
    facetstream(
        "train",
        "--events",
        path / "events",
        "--out",
        path / "model",
        "--steps",
        "20",
        "--until",
        "2015-01-01T00:00:00Z",
    )
    facetstream(
        *("run", "--events", path / "events", "--model", path / "model"),
        *("--data-dir", path / "data", "--until-end", "--port", "0"),
    )
    return path


def reply(work: Path, *args: str) -> Any:
    return json.loads(facetstream(*args, "--data-dir", work / "data", "--json"))


def test_stats_and_verify_after_the_whole_stream(work: Path) -> None:
    stats = reply(work, "stats")
    assert stats["items"] == {"live": 9742, "deleted": 0, "stale": 0}
    assert stats["engagements"]["applied"] == 100_836
    assert stats["offsets"] == {"engagements-0": 100_836, "items-0": 11_570}
    assert all(facet["within_bounds_share"] == 1.0 for facet in stats["facets"])
    checked = reply(work, "verify", "--strict", "--sample", "10000")
    assert checked["ok"]
    assert checked["violations"] == []
    assert checked["checked"]["reencoded"] == 9742


def test_an_item_is_followed_from_its_event_to_a_query(work: Path) -> None:
    item = reply(work, "item", "m356")
    assert item["counters"]["rating"] == 329
    facet = item["facets"][0]
    leaf = reply(work, "leaf", str(facet["facet"]), str(facet["leaf"]))
    assert "m356" in {member["item_id"] for member in leaf["items"]}
    assert leaf["size"] == len(leaf["items"]) <= reply(work, "leaves", "--top", "1")["leaves"][0]["size"]
    answer = reply(work, "query", "--item", "m356", "-k", "7")
    assert len(answer["results"]) == 7
    assert answer["missing"] == []


def test_a_seeded_query_repeats(work: Path) -> None:
    query = ("query", "--item", "m356", "--item", "m1", "--multinomial", "--seed", "7", "--at", "2018-01-01T00:00:00Z")
    assert reply(work, *query)["results"] == reply(work, *query)["results"]


def test_a_query_leaves_out_what_it_is_told_to(work: Path) -> None:
    every = reply(work, "query", "--item", "m356", "-k", "40")["results"]
    seen = every[0]["item_id"]
    only = ("--category", "Drama", "--category", "Romance", "--not-category", "War", "--exclude", seen)
    found = reply(work, "query", "--item", "m356", "-k", "40", *only)["results"]
    assert len(found) == 40
    for result in found[:10]:
        categories = set(reply(work, "item", result["item_id"])["categories"])
        assert categories & {"Drama", "Romance"}
        assert "War" not in categories
        assert result["item_id"] != seen
    assert reply(work, "query", "--item", "m356", "--language", "tlh")["results"] == []
    assert reply(work, "query", "--item", "m356", "--max-age-s", "1", "--at", "2030-01-01T00:00:00Z")["results"] == []


def test_a_share_of_the_places_is_for_what_is_hot(work: Path) -> None:
    found = reply(work, "query", "--item", "m356", "-k", "8", "--hot-share", "0.25")["results"]
    assert [(each["facet"], each["leaf"]) for each in found[:2]] == [(-1, -1)] * 2
    assert all(each["facet"] >= 0 for each in found[2:])
    assert len({each["item_id"] for each in found}) == 8
    of_all = reply(work, "query", "--item", "nobody", "-k", "8", "--hot-share", "0.25")
    assert of_all["missing"] == ["nobody"]
    assert [each["facet"] for each in of_all["results"]] == [-1] * 8
    assert "hot" in facetstream("query", "--item", "m1", "--hot-share", "1", "--data-dir", work / "data")


def test_a_trigger_that_is_not_indexed_is_encoded_on_the_fly(work: Path) -> None:
    film = {"title": "Toy Story (1995)", "categories": ["Adventure", "Animation", "Children", "Comedy", "Fantasy"]}
    found = reply(work, "query", "--content", json.dumps(film), "-k", "5")
    assert len(found["results"]) == 5
    assert found["triggers"] == found["missing"] == []


def test_lag_compact_deadletters_at_rest(work: Path) -> None:
    assert (
        json.loads(facetstream("lag", "--events", work / "events", "--data-dir", work / "data", "--json"))["lag"] == 0
    )
    assert reply(work, "compact") == {"splits": 0, "merges": 0, "marks": 0, "moved": 0}
    assert reply(work, "deadletters", "list")["total"] == 0


def test_every_table_prints(work: Path) -> None:
    for command in (
        ("stats",),
        ("item", "m1"),
        ("leaves",),
        ("verify",),
        ("query", "--item", "m1"),
        ("config", "show"),
    ):
        assert facetstream(*command, "--data-dir", work / "data").strip()


@pytest.mark.parametrize("name", ["event", "config", "training", "artifact", "dead-letter", "query", "replies"])
def test_schemas_are_json(name: str) -> None:
    assert json.loads(facetstream("schema", name))


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("item", "nobody"), 1, ["'nobody' is not in the index"]),
        (("leaf", "9", "1"), 1, ["facet 9 has no leaf 1"]),
        (("query", "--item", "nobody"), 1, ["none of the trigger items"]),
        (("query",), 2, ["give at least one trigger"]),
        (("query", "--item", "m1", "--max-age-s", "inf"), 2, ["max_age_s"]),
        (("query", "--item", "m1", "--hot-share", "1.5"), 2, ["hot_share"]),
        (("query", "--item", "m1", "--max-age-s", "1e300"), 2, ["max_age_s"]),
        (("query", "--content", "{}"), 2, ["at least one content field"]),
        (("query", "--content", "{"), 2, ["Invalid JSON"]),
        (("query", "--content", '{"embedding": [1.0]}'), 2, ["contents", "embedding"]),
        (("leaves", "--facet", "-1"), 1, ["there is no facet -1"]),
        (("run", "--events", "/nowhere", "--port", "0"), 2, ["/nowhere"]),
        (("query", "--item", "m1", "-k", "0"), 2, ["k:", "given: 0"]),
        (("stats", "--config", "/nowhere.toml"), 2, ["/nowhere.toml does not exist"]),
        (("verify", "--model", "/nowhere"), 3, ["/nowhere"]),
    ],
)
def test_errors_name_the_thing(work: Path, args: tuple[str, ...], code: int, words: list[str]) -> None:
    told = facetstream(*args, "--data-dir", work / "data", code=code)
    assert all(word in told for word in words), told


def test_no_store_and_no_broker_say_so(tmp_path: Path, work: Path) -> None:
    assert "holds no store" in facetstream("stats", "--data-dir", tmp_path, code=3)
    told = facetstream(
        "run", "--data-dir", tmp_path, "--model", work / "model", "--bootstrap", "127.0.0.1:9", "--port", "0", code=3
    )
    assert "127.0.0.1:9" in told


def test_dead_letters_are_listed_whatever_they_hold(tmp_path: Path, work: Path) -> None:
    log = tmp_path / "events"
    log.mkdir()
    (log / "items.jsonl").write_text('{"type":"item.[/b]","item_id":"x","occurred_at":1,"title":"t"}\n{\n')
    (log / "engagements.jsonl").write_text("")
    data = tmp_path / "data"
    facetstream("run", "--events", log, "--model", work / "model", "--data-dir", data, "--until-end", "--port", "0")
    listed = json.loads(facetstream("deadletters", "list", "--data-dir", data, "--json"))
    assert listed["reasons"] == {"unknown_type": 1, "unparseable": 1}
    assert "item.[/b]" in facetstream("deadletters", "list", "--data-dir", data)
    assert json.loads(facetstream("stats", "--data-dir", data, "--json"))["dead_letters"] == 2


def test_lag_refuses_a_source_that_was_cut(tmp_path: Path, work: Path) -> None:
    log = tmp_path / "events"
    log.mkdir()
    for name in ("items.jsonl", "engagements.jsonl"):
        (log / name).write_text("")
    told = facetstream("lag", "--events", log, "--data-dir", work / "data", code=3)
    assert "cut or replaced" in told
