from __future__ import annotations

import csv
import hashlib
import shutil
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from schemas.errors import UsageError
from schemas.events import ENGAGEMENT, ITEM_EVENT, ItemCreated, ItemUpdated
from streamer.eventlog_format import partition_of
from streamer.importers import examples, examples_dir
from streamer.importers.base import ImportReport
from streamer.importers.movielens import import_movielens

if TYPE_CHECKING:
    from pathlib import Path

MOVIES = """movieId,title,genres
1,Toy Story (1995),Adventure|Animation
2,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Sci-Fi
3,Black Mirror,(no genres listed)
4,Never rated (2000),Drama
5,"Death Note: Desu nôto (2006–2007)",Crime
"""  # noqa: RUF001 - the data have an en dash there
RATINGS = """userId,movieId,rating,timestamp
1,1,4.0,1000
1,2,0.5,1010
1,3,3.5,3000
2,2,5.0,900
2,1,5.0,5000
"""
TAGS = """userId,movieId,tag,timestamp
2,2,French,1100
1,2, surreal ,1130
1,2,dark,1160
2,2,FRENCH,9000
1,5,anime,800
"""


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    for name, text in {"movies": MOVIES, "ratings": RATINGS, "tags": TAGS}.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return folder


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def events(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_films_come_in_the_order_of_their_first_rating_or_tag(src, tmp_path):
    report = import_movielens(src, tmp_path / "log")
    items = events(tmp_path / "log" / "items.jsonl")
    assert [(event["type"], event["item_id"], event["occurred_at"]) for event in items] == [
        ("item.created", "m5", 799_999),
        ("item.updated", "m5", 800_000),
        ("item.created", "m2", 899_999),
        ("item.created", "m1", 999_999),
        ("item.updated", "m2", 1_130_000),
        ("item.updated", "m2", 1_160_000),
        ("item.created", "m3", 2_999_999),
    ]
    assert report == ImportReport(items=4, updates=3, engagements=5, from_ms=799_999, to_ms=5_000_000)


def test_content_is_title_genres_and_year_with_tags_only_when_they_were_given(src, tmp_path):
    import_movielens(src, tmp_path / "log")
    by_film: dict[str, list[dict[str, Any]]] = {}
    for event in events(tmp_path / "log" / "items.jsonl"):
        by_film.setdefault(event["item_id"], []).append(event)
    created, first, second = by_film["m2"]
    assert created == {
        "type": "item.created",
        "schema_version": 1,
        "item_id": "m2",
        "occurred_at": 899_999,
        "title": "The City of Lost Children (Cité des enfants perdus, La) (1995)",
        "categories": ["Sci-Fi"],
        "attributes": {"year": "1995"},
    }
    same = {"type": "item.updated"} | {key: created[key] for key in ("title", "categories", "attributes")}
    assert first.items() >= (same | {"tags": ["French", "surreal"]}).items()
    assert second.items() >= (same | {"tags": ["French", "surreal", "dark"]}).items()
    assert by_film["m3"][0].keys() == {"type", "schema_version", "item_id", "occurred_at", "title"}
    assert by_film["m5"][0]["attributes"] == {"year": "2006"}


def test_ratings_are_engagements_in_time_order_with_sessions_parted_by_pauses(src, tmp_path):
    import_movielens(src, tmp_path / "log")
    ratings = events(tmp_path / "log" / "engagements.jsonl")
    assert ratings[0] == {
        "type": "engagement",
        "schema_version": 1,
        "event_id": "r2-2",
        "user_id": "u2",
        "session_id": "s2-0",
        "item_id": "m2",
        "kind": "rating",
        "occurred_at": 900_000,
        "value": 5.0,
    }
    assert [(event["event_id"], event["session_id"]) for event in ratings[1:]] == [
        ("r1-1", "s1-0"),
        ("r1-2", "s1-0"),
        ("r1-3", "s1-1"),
        ("r2-1", "s2-1"),
    ]


def test_partitions_keep_an_item_with_its_engagements(src, tmp_path):
    import_movielens(src, tmp_path / "log", partitions=3)
    for number in range(3):
        for stream in ("items", "engagements"):
            for event in events(tmp_path / "log" / f"{stream}-{number:05d}.jsonl"):
                assert partition_of(event["item_id"], 3) == number


def test_progress_adds_up_to_the_rows_read(src, tmp_path):
    told: list[int] = []
    import_movielens(src, tmp_path / "log", told.append)
    assert sum(told) == 15


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("movies.csv", "movieId,title", "id,title", r"movies\.csv begins with \['id', .* header movieId,title"),
        ("movies.csv", "3,Black", "1,Black", r"movies\.csv line 4: film 1 is there twice"),
        ("movies.csv", "3,Black Mirror", "3, ", r"movies\.csv line 4: film 3 has no title"),
        ("movies.csv", "3,Black Mirror,", "3,", r"movies\.csv line 4 has 2 fields instead of 3"),
        ("movies.csv", '"Death Note', '"Death" Note', r"movies\.csv after line \d is no UTF-8 CSV"),
        ("ratings.csv", "1,2,0.5", "1,2,0.0", r"ratings\.csv line 3: rating '0\.0' is not between"),
        ("ratings.csv", "1,2,0.5", "1,2,nan", r"ratings\.csv line 3: rating 'nan' is not between"),
        ("ratings.csv", "1,2,0.5", "1,2,good", r"ratings\.csv line 3: rating 'good' is not between"),
        ("ratings.csv", "1,2,0.5", "1,77,0.5", r"ratings\.csv line 3: film 77 is not in movies\.csv"),
        ("ratings.csv", "0.5,1010", "0.5,-1", r"ratings\.csv line 3: timestamp '-1' is not a whole number"),
        ("ratings.csv", "1,3,3.5", "1,1,3.5", r"ratings\.csv: user 1 rated film 1 twice"),
        ("tags.csv", "1,5,anime", "x,5,anime", r"tags\.csv line 6: userId 'x' is not a whole number"),
        ("tags.csv", "1,5,anime", "1,5, ", r"tags\.csv line 6: the tag is empty"),
    ],
)
def test_bad_input_is_named_with_its_line_and_writes_nothing(src, tmp_path, file, old, new, message):
    replace(src / file, old, new)
    with pytest.raises(UsageError, match=message):
        import_movielens(src, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_bytes_that_are_no_utf8_are_named(src, tmp_path):
    (src / "tags.csv").write_bytes(TAGS.encode() + b"1,5,\xff,900\n")
    with pytest.raises(UsageError, match=r"tags\.csv after line \d is no UTF-8 CSV"):
        import_movielens(src, tmp_path / "log")


def test_a_missing_file_is_named(src, tmp_path):
    (src / "tags.csv").unlink()
    with pytest.raises(UsageError, match=r"cannot open .*tags\.csv.*give a MovieLens directory"):
        import_movielens(src, tmp_path / "log")


def test_data_without_any_event_are_refused(src, tmp_path):
    for name, text in {"ratings": RATINGS, "tags": TAGS}.items():
        (src / f"{name}.csv").write_text(text.splitlines()[0] + "\n")
    with pytest.raises(UsageError, match="neither ratings nor tags"):
        import_movielens(src, tmp_path / "log")


def test_an_existing_log_is_only_replaced_when_told_so(src, tmp_path):
    import_movielens(src, tmp_path / "log")
    with pytest.raises(UsageError, match="is not empty"):
        import_movielens(src, tmp_path / "log")
    import_movielens(src, tmp_path / "log", overwrite=True)


def test_the_shipped_data_become_valid_events_in_time_order_without_knowledge_of_later_tags(tmp_path):
    report = import_movielens(examples_dir(), tmp_path / "log")
    assert report == ImportReport(
        items=9_742, updates=1_828, engagements=100_836, from_ms=828_124_614_999, to_ms=1_537_799_250_000
    )
    items = [ITEM_EVENT.validate_json(line) for line in (tmp_path / "log" / "items.jsonl").read_bytes().splitlines()]
    ratings = [
        ENGAGEMENT.validate_json(line) for line in (tmp_path / "log" / "engagements.jsonl").read_bytes().splitlines()
    ]
    assert [event.occurred_at for event in items] == sorted(event.occurred_at for event in items)
    assert [event.occurred_at for event in ratings] == sorted(event.occurred_at for event in ratings)
    assert len({event.event_id for event in ratings}) == len(ratings) == report.engagements

    given: dict[tuple[str, str], int] = {}
    with (examples_dir() / "tags.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (f"m{row['movieId']}", row["tag"].casefold())
            given[key] = min(given.get(key, 1 << 62), int(row["timestamp"]) * 1000)
    created = {event.item_id: event.occurred_at for event in items if isinstance(event, ItemCreated)}
    assert len(created) == report.items
    known: set[tuple[str, str]] = set()
    for event in items:
        if isinstance(event, ItemUpdated):
            assert event.occurred_at > created[event.item_id]
            words = {(event.item_id, tag.casefold()) for tag in event.tags}
            assert all(given[word] <= event.occurred_at for word in words)
            known |= words
        else:
            assert isinstance(event, ItemCreated)
            assert event.tags == []
    assert known == given.keys()
    assert all(created[event.item_id] < event.occurred_at for event in ratings)


def test_the_same_data_give_the_same_bytes_wherever_they_lie(tmp_path):
    shutil.copytree(examples_dir(), tmp_path / "copy")
    import_movielens(examples_dir(), tmp_path / "a")
    import_movielens(tmp_path / "copy", tmp_path / "b")
    for name in ("items.jsonl", "engagements.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_shipped_data_come_with_their_licence():
    assert "Usage License" in (examples_dir() / "README.txt").read_text(encoding="utf-8")
    assert "commercial" in (examples_dir().parent / "README.md").read_text(encoding="utf-8")


def test_the_shipped_data_are_as_published_to_the_byte():
    published = {
        "README.txt": "63d22ac138e80fae37021797ed8e1b9424b5239dc576a137422adf783ae3f404",
        "movies.csv": "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07",
        "ratings.csv": "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
        "tags.csv": "92a9f8bb7916dceef6151209845788c3643f794dfa79d1feaec7121b5960399d",
    }
    shipped = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in examples_dir().iterdir()}
    assert shipped == published


def test_missing_example_data_say_what_to_do():
    assert examples.examples_dir().name == "ml-latest-small"
    with pytest.raises(UsageError, match="give the path of the data set"):
        examples_dir("no-such-data")
