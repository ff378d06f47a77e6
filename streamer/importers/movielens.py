"""MovieLens (GroupLens) -> event log: films are items, ratings are engagements, in true time order.

- MovieLens has no creation time: ``item.created`` is one millisecond before the film's first rating or tag.
- A film is created with title, genres and year. Its tags come later in ``item.updated`` events, each with the full
  content including all tags given by then, so that nothing is known before its time. Tags given to one film within a
  minute make one update, at the time of the last of them. A repeated tag (in whatever case) changes nothing.
- A rating is an engagement of kind ``rating`` with value 0.5 to 5. A session ends where its user pauses for more than
  half an hour.
"""

from __future__ import annotations

import csv
import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from schemas.errors import UsageError
from streamer.eventlog_writer import EventLogWriter
from streamer.importers.base import ImportReport, Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

SESSION_GAP_S: Final = 30 * 60
TAG_GROUP_S: Final = 60
_PROGRESS_ROWS: Final = 4_096
_ARTICLE_LAST: Final = re.compile(r"(.+?), (The|A|An)((?: \(.*)?)")
_YEAR: Final = re.compile(r"\((\d{4})(?:[-\N{EN DASH}]\d{0,4})?\)$")  # series run from a year to a year
_NO_GENRES: Final = "(no genres listed)"


class Tag(NamedTuple):
    """A user's word for a film; ordered by time."""

    time_s: int
    user: int
    word: str


@dataclass(frozen=True, slots=True)
class Ratings:
    """All ratings as columns (n,), sorted by time, user and film; ``session`` counts from 0 for each user."""

    user: npt.NDArray[np.int64]
    film: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]
    time_s: npt.NDArray[np.int64]
    session: npt.NDArray[np.int64]


def import_movielens(
    src: Path, out: Path, progress: Progress = no_progress, *, partitions: int = 1, overwrite: bool = False
) -> ImportReport:
    """Write the MovieLens data in directory ``src`` as the event log ``out``.

    Args:
        src: holds ``movies.csv``, ``ratings.csv`` and ``tags.csv``.
        out: the log's directory; must be empty or missing unless ``overwrite`` says to replace a log.
        progress: told of rows read.
        partitions: files per stream.
        overwrite: replace an event log in ``out``.

    Raises:
        UsageError: if a file is missing or malformed (which, and in which line), or ``out`` cannot be written.
    """
    films = _read_films(src / "movies.csv", progress)
    ratings = _read_ratings(src / "ratings.csv", films, progress)
    tags = _read_tags(src / "tags.csv", films, progress)
    items = _item_events(films, ratings, tags)
    if not items:
        raise UsageError(f"{src} holds neither ratings nor tags; there is nothing to import")
    with EventLogWriter(out, partitions, overwrite=overwrite) as log:
        for event in items:
            log.write(event)
        for event in _rating_events(ratings):
            log.write(event)
    created = sum(event["type"] == "item.created" for event in items)
    last_rating_ms = int(ratings.time_s[-1]) * 1000 if len(ratings.time_s) else 0
    return ImportReport(
        items=created,
        updates=len(items) - created,
        engagements=len(ratings.time_s),
        from_ms=items[0]["occurred_at"],
        to_ms=max(items[-1]["occurred_at"], last_rating_ms),
    )


def _rows(path: Path, header: list[str], progress: Progress) -> Iterator[tuple[str, list[str]]]:
    """Rows of a file with where each is, for messages."""
    try:
        file = path.open(encoding="utf-8-sig", newline="")
    except OSError as err:
        raise UsageError(
            f"cannot open {path}: {err}; give a MovieLens directory with movies.csv, ratings.csv and tags.csv"
        ) from err
    with file:
        rows = csv.reader(file, strict=True)
        try:
            if (found := next(rows, None)) != header:
                raise UsageError(f"{path} begins with {found}, not with the header {','.join(header)}")
            count = 0
            for row in rows:
                where = f"{path} line {rows.line_num}"
                if len(row) != len(header):
                    raise UsageError(f"{where} has {len(row)} fields instead of {len(header)}: {row}")
                yield where, row
                count += 1
                if count % _PROGRESS_ROWS == 0:
                    progress(_PROGRESS_ROWS)
            progress(count % _PROGRESS_ROWS)
        except (csv.Error, UnicodeDecodeError) as err:
            raise UsageError(f"{path} after line {rows.line_num} is no UTF-8 CSV: {err}") from err


def _whole(where: str, name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UsageError(f"{where}: {name} {text!r} is not a whole number")
    return int(text)


def _read_films(path: Path, progress: Progress) -> dict[int, dict[str, Any]]:
    films: dict[int, dict[str, Any]] = {}
    for where, (film_text, title, genres) in _rows(path, ["movieId", "title", "genres"], progress):
        film = _whole(where, "movieId", film_text)
        if film in films:
            raise UsageError(f"{where}: film {film} is there twice")
        if not title.strip():
            raise UsageError(f"{where}: film {film} has no title")
        films[film] = _content(title.strip(), genres)
    return films


def _content(title: str, genres: str) -> dict[str, Any]:
    year = _YEAR.search(title)
    return {
        "title": _ARTICLE_LAST.sub(r"\2 \1\3", title) if _ARTICLE_LAST.fullmatch(title) else title,
        "categories": [genre for genre in genres.split("|") if genre and genre != _NO_GENRES],
        "attributes": {"year": year[1]} if year else {},
    }


def _read_ratings(path: Path, films: Mapping[int, object], progress: Progress) -> Ratings:
    ids, values = array("q"), array("d")
    header = ["userId", "movieId", "rating", "timestamp"]
    for where, (user_text, film_text, rating, time_text) in _rows(path, header, progress):
        film = _known(where, films, film_text)
        try:
            value = float(rating)
        except ValueError:
            value = 0.0
        if not 0.5 <= value <= 5:
            raise UsageError(f"{where}: rating {rating!r} is not between 0.5 and 5")
        ids.extend((_whole(where, "userId", user_text), film, _whole(where, "timestamp", time_text)))
        values.append(value)
    user, film_of, time_s = np.array(ids, np.int64).reshape(-1, 3).T
    value_of = np.array(values, np.float64)
    by_user = np.lexsort((film_of, time_s, user))
    new_user = np.diff(user[by_user], prepend=-1) != 0
    new_session = new_user | (np.diff(time_s[by_user], prepend=0) > SESSION_GAP_S)
    number = np.cumsum(new_session)
    first = np.maximum.accumulate(np.where(new_user, number, 0))
    session = np.empty(len(user), np.int64)
    session[by_user] = number - first
    _check_rated_once(path, user, film_of)
    order = np.lexsort((film_of, user, time_s))
    return Ratings(user[order], film_of[order], value_of[order], time_s[order], session[order])


def _known(where: str, films: Mapping[int, object], film_text: str) -> int:
    film = _whole(where, "movieId", film_text)
    if film not in films:
        raise UsageError(f"{where}: film {film} is not in movies.csv")
    return film


def _check_rated_once(path: Path, user: npt.NDArray[np.int64], film: npt.NDArray[np.int64]) -> None:
    order = np.lexsort((film, user))
    twice = (np.diff(user[order]) == 0) & (np.diff(film[order]) == 0)
    if twice.any():
        row = order[int(np.flatnonzero(twice)[0])]
        raise UsageError(f"{path}: user {user[row]} rated film {film[row]} twice; event ids would not be unique")


def _read_tags(path: Path, films: Mapping[int, object], progress: Progress) -> dict[int, list[Tag]]:
    tags: dict[int, list[Tag]] = {}
    header = ["userId", "movieId", "tag", "timestamp"]
    for where, (user_text, film_text, word, time_text) in _rows(path, header, progress):
        film = _known(where, films, film_text)
        if not word.strip():
            raise UsageError(f"{where}: the tag is empty")
        tag = Tag(_whole(where, "timestamp", time_text), _whole(where, "userId", user_text), word.strip())
        tags.setdefault(film, []).append(tag)
    return tags


def _item_events(
    films: Mapping[int, dict[str, Any]], ratings: Ratings, tags: Mapping[int, list[Tag]]
) -> list[dict[str, Any]]:
    rated, first_row = np.unique(ratings.film, return_index=True)
    first_s = dict(zip(rated.tolist(), ratings.time_s[first_row].tolist(), strict=True))
    for film, given in tags.items():
        earliest = min(given).time_s
        first_s[film] = min(first_s.get(film, earliest), earliest)
    events: list[tuple[int, int, dict[str, Any]]] = []
    for film, time_s in first_s.items():
        created_ms = time_s * 1000 - 1
        events.append((created_ms, film, _item_event("item.created", film, created_ms, films[film])))
        for update_s, known in _tag_groups(tags.get(film, [])):
            content = films[film] | {"tags": known}
            events.append((update_s * 1000, film, _item_event("item.updated", film, update_s * 1000, content)))
    events.sort(key=lambda event: event[:2])
    return [event for _, _, event in events]


def _item_event(kind: str, film: int, occurred_ms: int, content: Mapping[str, Any]) -> dict[str, Any]:
    head = {"type": kind, "schema_version": 1, "item_id": f"m{film}", "occurred_at": occurred_ms}
    return head | {key: value for key, value in content.items() if value}


def _tag_groups(tags: list[Tag]) -> Iterator[tuple[int, list[str]]]:
    """When each group of tags was complete, in seconds, with all words known then; only if it brought new ones."""
    known: dict[str, str] = {}
    told = 0
    group: list[Tag] = []
    for tag in [*sorted(tags), None]:
        if group and (tag is None or tag.time_s >= group[0].time_s + TAG_GROUP_S):
            for _, _, word in group:
                known.setdefault(word.casefold(), word)
            if len(known) > told:
                yield group[-1].time_s, list(known.values())
            told, group = len(known), []
        if tag is not None:
            group.append(tag)


def _rating_events(ratings: Ratings) -> Iterator[dict[str, Any]]:
    columns = (ratings.user, ratings.film, ratings.value, ratings.time_s, ratings.session)
    for user, film, value, time_s, session in zip(*(column.tolist() for column in columns), strict=True):
        yield {
            "type": "engagement",
            "schema_version": 1,
            "event_id": f"r{user}-{film}",
            "user_id": f"u{user}",
            "session_id": f"s{user}-{session}",
            "item_id": f"m{film}",
            "kind": "rating",
            "occurred_at": time_s * 1000,
            "value": value,
        }
