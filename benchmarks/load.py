"""Made-up events that look like real ones: film-like titles of rare and common words, and skewed engagements.

The same arguments give the same bytes. Events are one second apart in event time, engagements after all items, so that
an ingestion run measures one kind of event at a time and nothing has to wait for its item.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from streamer.eventlog_writer import EventLogWriter
from streamer.sources.base import Stream

START_MS: Final = 1_500_000_000_000
_STEP_MS: Final = 1_000
_WORDS: Final = 20_000
_CATEGORIES: Final = 20
_USERS: Final = 10_000
_CROWD_WORDS: Final = 8
_TOPIC_WORDS: Final = 12
_AT_ONCE: Final = 8_192

FACETS: Final = 3
DIM: Final = 64

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


def item_id(number: int) -> str:
    """Id of the n-th item."""
    return f"item-{number:07d}"


def item_lines(count: int, *, first: int = 0, seed: int = 0) -> list[bytes]:
    """Creation events of items ``first`` to ``first + count - 1``, about 230 bytes each.

    Titles have three to five words with Zipf frequencies over 20,000 (exponent 1), items one to three of 20 categories,
    a creator, a language and two attributes. Another ``count`` gives other items, not more of the same.
    """
    rng = np.random.default_rng([seed, first])
    words = _vocabulary()
    picks = _zipf(rng, _WORDS, (count, 5))
    lengths = rng.integers(3, 6, count)
    return _items(first, rng, [" ".join(words[at] for at in row[:n]) for row, n in _rows(picks, lengths)])


def topical_lines(count: int, *, topics: int, seed: int = 0) -> list[bytes]:
    """Creation events that fall into topics of Zipf sizes: each has its own twelve words, creator and categories."""
    rng = np.random.default_rng([seed, 2, count])
    words = _vocabulary()
    topic = _zipf(rng, topics, (count,))
    own = rng.integers(0, _WORDS, (topics, _TOPIC_WORDS))
    picks = own[topic[:, None], rng.integers(0, _TOPIC_WORDS, (count, 5))]
    lengths = rng.integers(3, 6, count)
    titles = [" ".join(words[at] for at in row[:n]) for row, n in _rows(picks, lengths)]
    return _items(0, rng, titles, topic=topic)


def crowd_lines(count: int, *, first: int, seed: int = 0) -> list[bytes]:
    """Creation events of a flash crowd: titles of the same eight words, six of them in any order, the rest alike."""
    rng = np.random.default_rng([seed, first])
    words = _vocabulary()[100 : 100 + _CROWD_WORDS]
    orders = rng.permuted(np.tile(np.arange(_CROWD_WORDS), (count, 1)), axis=1)
    titles = [" ".join(words[at] for at in row[:6]) for row in orders.tolist()]
    return _items(first, rng, titles, crowd=True)


def engagement_lines(count: int, items: int, *, seed: int = 0, after: int | None = None) -> list[bytes]:
    """Engagements with ``items`` items, Zipf (exponent 1) over them: three ratings to one click, about 150 bytes each.

    Args:
        count: how many.
        items: items they go to.
        seed: of the draw.
        after: they happen after that many items; by default after all.
    """
    rng = np.random.default_rng([seed, 1, count])
    popular = rng.permutation(items)
    target = popular[_zipf(rng, items, (count,))].tolist()
    users = rng.integers(0, _USERS, count).tolist()
    rated = (rng.random(count) < 0.75).tolist()
    stars = (rng.integers(1, 11, count) / 2).tolist()
    begin = START_MS + _STEP_MS * (items if after is None else after)
    return [
        orjson.dumps(
            {
                "type": "engagement",
                "schema_version": 1,
                "event_id": f"e{number}",
                "user_id": f"user-{users[number]}",
                "item_id": item_id(target[number]),
                "occurred_at": begin + number * _STEP_MS,
                **({"kind": "rating", "value": stars[number]} if rated[number] else {"kind": "click"}),
            }
        )
        for number in range(count)
    ]


def embeddings(count: int, *, clusters: int = 2_000, drift: float = 0.0, seed: int = 0) -> F32:
    """(n, 3, 64) unit vectors around cluster centers, Zipf sizes (exponent 1), each facet with clusters of its own.

    With ``drift`` the centers wander on the sphere while items arrive: by that angle, in radians, from the first item
    to the last, each in a direction of its own. float16 holds them exactly.
    """
    rng = np.random.default_rng([seed, 3])
    weight = 1 / np.arange(1, clusters + 1)
    out = np.empty((count, FACETS, DIM), np.float32)
    for facet in range(FACETS):
        centers, towards = rng.standard_normal((2, clusters, DIM)).astype(np.float32)
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
        towards -= (towards * centers).sum(1, keepdims=True) * centers
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        of = rng.permutation(rng.choice(clusters, count, p=weight / weight.sum()))
        for start in range(0, count, _AT_ONCE):
            mine = of[start : start + _AT_ONCE]
            angle = (drift * np.arange(start, start + len(mine)) / count).astype(np.float32)[:, None]
            noise = (0.35 / np.sqrt(DIM)) * rng.standard_normal((len(mine), DIM)).astype(np.float32)
            out[start : start + len(mine), facet] = (
                np.cos(angle) * centers[mine] + np.sin(angle) * towards[mine] + noise
            )
    out /= np.linalg.norm(out, axis=2, keepdims=True)
    return out.astype(np.float16).astype(np.float32)


def write_log(path: Path, items: list[bytes], engagements: list[bytes]) -> Path:
    """An event log of one partition per stream."""
    with EventLogWriter(path) as log:
        for stream, lines in ((Stream.ITEMS, items), (Stream.ENGAGEMENTS, engagements)):
            for start in range(0, len(lines), _AT_ONCE):
                log.write_lines(stream, lines[start : start + _AT_ONCE])
    return path


def _items(
    first: int, rng: np.random.Generator, titles: list[str], *, crowd: bool = False, topic: I64 | None = None
) -> list[bytes]:
    count = len(titles)
    one = 1 if crowd else None  # all alike
    labels = rng.integers(0, one or _CATEGORIES, (count, 3))
    chosen = [
        [f"category-{label}" for label in dict.fromkeys(row[:n])] for row, n in _rows(labels, rng.integers(1, 4, count))
    ]
    creators = _zipf(rng, one or 2_000, (count,)).tolist() if topic is None else topic.tolist()
    if topic is not None:
        chosen = [[f"category-{number % _CATEGORIES}"] for number in creators]
    years = rng.integers(1950, 1950 + (one or 70), count).tolist()
    lines = []
    for row, title in enumerate(titles):
        event: dict[str, Any] = {
            "type": "item.created",
            "schema_version": 1,
            "item_id": item_id(first + row),
            "occurred_at": START_MS + (first + row) * _STEP_MS,
            "title": f"{title} ({years[row]})",
            "categories": chosen[row],
            "creator_id": f"creator-{creators[row]}",
            "language": "en",
            "attributes": {"year": str(years[row]), "decade": f"{years[row] // 10}0s"},
        }
        lines.append(orjson.dumps(event))
    return lines


def _rows(table: I64, lengths: I64) -> list[tuple[list[int], int]]:
    return list(zip(table.tolist(), lengths.tolist(), strict=True))


def _zipf(rng: np.random.Generator, size: int, shape: tuple[int, ...]) -> I64:
    """Ranks from 0 with probability proportional to 1 / (rank + 1)."""
    cumulative = np.cumsum(1 / np.arange(1, size + 1))
    ranks: I64 = np.searchsorted(cumulative, rng.random(shape) * cumulative[-1]).astype(np.int64)
    return ranks


def _vocabulary() -> list[str]:
    """20,000 distinct pseudo-words of three to nine letters."""
    rng = np.random.default_rng(7)
    vowels, consonants = "aeiou", "bcdfghjklmnprstvwz"
    found: dict[str, None] = {}
    while len(found) < _WORDS:
        length = int(rng.integers(3, 10))
        picks = rng.integers(0, 1 << 30, length).tolist()
        found[
            "".join((vowels if at % 2 else consonants)[pick % (5 if at % 2 else 18)] for at, pick in enumerate(picks))
        ] = None
    return list(found)
