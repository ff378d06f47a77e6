"""Categories and languages of items, for filters.

Many items say the same, so each distinct set of labels has a number, and an item carries one number: a filter is
decided once for each set, not for each item.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from schemas.errors import StoreCorruptError

U32 = npt.NDArray[np.uint32]
Allowed = npt.NDArray[np.bool_]


class Labels(NamedTuple):
    """What an item says of itself: its language, and its categories ascending."""

    language: str | None = None
    categories: tuple[str, ...] = ()

    @classmethod
    def of(cls, language: str | None, categories: Sequence[str]) -> Labels:
        """From an event's fields; an empty language is none."""
        return cls(language or None, tuple(sorted(set(categories))) if categories else ())


UNLABELLED: Final = Labels()


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items an answer may hold. Empty fields ask for nothing.

    Attributes:
        categories: an item needs one of these.
        not_categories: an item may have none of these.
        languages: an item's language is one of these.
    """

    categories: frozenset[str] = frozenset()
    not_categories: frozenset[str] = frozenset()
    languages: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.categories or self.not_categories or self.languages)

    def passes(self, labels: Labels) -> bool:
        """Whether items with these labels may be in an answer."""
        if self.languages and labels.language not in self.languages:
            return False
        if self.categories and self.categories.isdisjoint(labels.categories):
            return False
        return self.not_categories.isdisjoint(labels.categories)


EVERYTHING: Final = Filter()


class LabelTable:
    """Sets of labels by number, 0 being the empty one. It only grows."""

    def __init__(self) -> None:
        self._sets: list[Labels] = [UNLABELLED]
        self._numbers = {UNLABELLED: 0}
        self._decided: dict[Filter, Allowed] = {}

    def __len__(self) -> int:
        return len(self._sets)

    def __getitem__(self, number: int) -> Labels:
        return self._sets[number]

    def number(self, wanted: Iterable[Labels]) -> tuple[U32, list[Labels]]:
        """(n,) numbers of n sets, and the sets that have to be added for them, numbered from ``len(self)`` on."""
        fresh: dict[Labels, int] = {}
        known, first = self._numbers, len(self._sets)
        numbers = [
            number if (number := known.get(labels)) is not None else fresh.setdefault(labels, first + len(fresh))
            for labels in wanted
        ]
        return np.array(numbers, np.uint32), list(fresh)

    def add(self, fresh: Iterable[Labels]) -> None:
        """Sets that are not there yet get the next numbers."""
        for labels in fresh:
            self._numbers[labels] = len(self._sets)
            self._sets.append(labels)

    def allowed(self, wanted: Filter) -> Allowed:
        """(sets,) which sets a filter lets pass. Only what came since the last time is decided anew."""
        decided = self._decided.get(wanted, np.empty(0, np.bool_))
        if len(decided) < len(self._sets):
            more = [wanted.passes(labels) for labels in self._sets[len(decided) :]]
            decided = np.concatenate([decided, np.array(more, np.bool_)])
            if len(self._decided) >= _REMEMBERED:
                self._decided.clear()
            self._decided[wanted] = decided
        return decided


_REMEMBERED: Final = 64
"""Filters of which the decisions are kept."""


def encode(labels: Labels) -> bytes:
    """For the store."""
    return orjson.dumps(tuple(labels))


def decode(value: bytes) -> Labels:
    """From the store.

    Raises:
        StoreCorruptError: if it is no set of labels.
    """
    try:
        language, categories = orjson.loads(value)
        return Labels(language, tuple(categories))
    except (ValueError, TypeError) as error:
        raise StoreCorruptError(f"labels {value[:64]!r} do not decode; restore a checkpoint or replay") from error


def table_of(rows: Iterator[tuple[int, bytes]]) -> LabelTable:
    """From the store's (number, value) in order.

    Raises:
        StoreCorruptError: if a number is missing.
    """
    table = LabelTable()
    for number, value in rows:
        if number != len(table):
            raise StoreCorruptError(f"set {len(table)} in labels is missing; restore a checkpoint or replay")
        table.add([decode(value)])
    return table
