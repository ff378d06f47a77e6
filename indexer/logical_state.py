"""What a store means, apart from how it came about: the yardstick of the exactly-once guarantee.

Two runs over the same records must end in the same logical state, however they were cut into batches, crashed,
restarted or rebalanced on the way. Ordinals, leaves, routes, bounds and the journal may differ: they depend on when
rebalancing ran. Everything here may not, down to the last bit of a decayed count.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Final, NamedTuple

from indexer import keys
from indexer.keys import ItemState
from indexer.labels import UNLABELLED, Labels
from indexer.retrieval.store_reader import StoreReader
from indexer.seen import read_entry
from indexer.store import Store
from schemas.dead_letters import DeadLetter

_CHUNK: Final = 4_096
_TOTALS: Final = (
    "items_live",
    "items_deleted",
    "items_stale",
    "engagements_applied",
    "engagements_duplicate",
    "records_lost",
    "dead_letters",
    "stream_time_ms",
)


class ItemFacts(NamedTuple):
    """One item id. Numbers that must agree to the bit are written in hexadecimal.

    Attributes:
        state: ``live`` or ``deleted``.
        source, offset: of the event that decides.
        raw: raw index in each facet; empty when deleted.
        labels: language and categories; nothing when deleted.
        content, vector: SHA-256 of the event's bytes and of the embeddings; empty when deleted.
        counts: engagements of each kind, by its name.
        decayed: (landmark, sum) of each window.
    """

    state: str
    created_at: int
    occurred_at: int
    source: str
    offset: int
    raw: tuple[int, ...]
    labels: Labels
    content: str
    vector: str
    counts: tuple[tuple[str, int], ...]
    decayed: tuple[tuple[int, str], ...]
    value_sum: str
    last_at: int


class LetterFacts(NamedTuple):
    """One dead letter, without the time and the wording that each run has of its own."""

    reason: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class LogicalState:
    """What a store means.

    Attributes:
        items: item id -> facts.
        pending: (partition name, offset) -> (item id, the engagement's bytes).
        totals: the running totals that do not depend on rebalancing.
        offsets: partition name -> next offset.
        letters: dead letter -> how often it is there; 1 where the sink is exactly-once.
        seen: (shard's place among several, place from the oldest) -> (digest of an event_id, stream time when it came).
    """

    items: Mapping[str, ItemFacts]
    pending: Mapping[tuple[str, int], tuple[str, bytes]]
    totals: Mapping[str, int]
    offsets: Mapping[str, int]
    letters: Mapping[LetterFacts, int]
    seen: Mapping[tuple[int, int], tuple[str, int]] = field(default_factory=dict)


def logical_state(store: Store, letters: Iterable[DeadLetter] = ()) -> LogicalState:
    """Read the whole logical state.

    Args:
        store: at rest, or a secondary between two catch-ups.
        letters: what the dead-letter sink of this store holds.

    Raises:
        StoreCorruptError: if a record does not decode.
    """
    totals = store.totals()
    waiting = ((keys.split_pending_key(key), record) for key, record in store.scan("pending"))
    remembered = (read_entry(value) for _, value in store.scan("seen"))
    return LogicalState(
        items=dict(_items(store)),
        pending={(source, offset): (item_id, record) for (item_id, source, offset), record in waiting},
        totals={name: getattr(totals, name) for name in _TOTALS},
        offsets=store.offsets(),
        letters=Counter(
            LetterFacts(letter.reason, letter.topic, letter.partition, letter.offset, letter.key, letter.value)
            for letter in letters
        ),
        seen={(0, at): (digest.hex(), time_ms) for at, (digest, time_ms) in enumerate(remembered)},
    )


def merge(states: Iterable[LogicalState]) -> LogicalState:
    """What shards mean together. Nothing is in two of them but equal dead letters, which are counted."""
    each = list(states)
    letters: Counter[LetterFacts] = Counter()
    for state in each:
        letters.update(state.letters)
    totals = {name: sum(state.totals[name] for state in each) for name in _TOTALS}
    totals["stream_time_ms"] = max((state.totals["stream_time_ms"] for state in each), default=0)
    return LogicalState(
        items={item_id: facts for state in each for item_id, facts in state.items.items()},
        pending={place: row for state in each for place, row in state.pending.items()},
        totals=totals,
        offsets={name: offset for state in each for name, offset in state.offsets.items()},
        letters=letters,
        seen={(number, at): row for number, state in enumerate(each) for (_, at), row in state.seen.items()},
    )


def differences(expected: LogicalState, found: LogicalState, most: int = 20) -> list[str]:
    """How ``found`` differs, one sentence each, at most ``most``; empty when they mean the same."""
    out: list[str] = []
    for each in fields(LogicalState):
        out += _differing(each.name, getattr(expected, each.name), getattr(found, each.name))
    return out[:most]


def _differing(what: str, expected: Mapping[Hashable, object], found: Mapping[Hashable, object]) -> Iterator[str]:
    for key in sorted(expected.keys() | found.keys(), key=repr):
        if key not in found:
            yield f"{what}: {key!r} is missing, expected {expected[key]!r}"
        elif key not in expected:
            yield f"{what}: {key!r} should not be there, found {found[key]!r}"
        elif expected[key] != found[key]:
            yield f"{what}: {key!r} is {found[key]!r}, expected {expected[key]!r}"


def _items(store: Store) -> Iterator[tuple[str, ItemFacts]]:
    meta, totals, reader = store.meta(), store.totals(), StoreReader(store)
    table = store.labels()
    rows = store.scan("items")
    while chunk := list(islice(rows, _CHUNK)):
        many_keys = [key for key, _ in chunk]
        counters = reader.counters(keys.ordinals(many_keys, "items"))
        contents, vectors = store.get_many("content", many_keys), store.get_many("vectors", many_keys)
        for row, (_, value) in enumerate(chunk):
            record = keys.item_record(value, meta.facets)
            live = record.state == ItemState.LIVE
            counts = zip(totals.kinds, counters.counts[row].tolist(), strict=True)
            sums = [number.hex() for number in counters.decayed[row].tolist()]
            yield (
                record.item_id,
                ItemFacts(
                    state=ItemState(record.state).name.lower(),
                    created_at=record.created_at,
                    occurred_at=record.occurred_at,
                    source=totals.sources[record.source],
                    offset=record.offset,
                    raw=tuple(record.raw.tolist()) if live else (),
                    labels=table[record.labels] if live else UNLABELLED,
                    content=_digest(contents[row]),
                    vector=_digest(vectors[row]),
                    counts=tuple(sorted((kind, count) for kind, count in counts if count)),
                    decayed=tuple(zip(counters.epochs[row].tolist(), sums, strict=True)),
                    value_sum=float(counters.value_sum[row]).hex(),
                    last_at=int(counters.last_at[row]),
                ),
            )


def _digest(value: bytes | None) -> str:
    return "" if value is None else hashlib.sha256(value).hexdigest()
