"""What an index must hold after a stream of records, one record at a time in plain Python: the oracle.

Slow and obvious on purpose. It knows nothing of batches, arrays, leaves or RocksDB.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np

from indexer.counters import EPOCH_HALF_LIVES, STEPS
from indexer.labels import UNLABELLED
from indexer.logical_state import ItemFacts, LetterFacts, LogicalState
from schemas.config import DedupeConfig, PendingConfig
from schemas.dead_letters import Reason
from tests.builders import HALF_LIVES_S, Record, assign, vectors_of


@dataclass
class Item:
    last: Record
    created_at: int
    counts: dict[str, int] = field(default_factory=dict)
    decayed: list[tuple[int, float]] = field(default_factory=lambda: [(0, 0.0)] * len(HALF_LIVES_S))
    value_sum: float = 0.0
    last_at: int = 0

    def count(self, engagement: Record, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.last_at = max(self.last_at, engagement.at)
        self.value_sum += 0.0 if engagement.value is None else engagement.value
        self.decayed = [
            decay(*sums, engagement.at, half_life) for sums, half_life in zip(self.decayed, HALF_LIVES_S, strict=True)
        ]


def decay(epoch: int, total: float, at: int, half_life_s: int) -> tuple[int, float]:
    """Forward decay of one engagement: (landmark, sum) afterwards."""
    step = at * STEPS // (half_life_s * 1_000)
    newest = max(epoch, step // (STEPS * EPOCH_HALF_LIVES))
    total = math.ldexp(total, -(newest - epoch) * EPOCH_HALF_LIVES)
    whole, part = divmod(step - newest * STEPS * EPOCH_HALF_LIVES, STEPS)
    return newest, total + math.ldexp(2.0 ** (part / STEPS), max(whole, -5_000))


class ReferenceIndex:
    """Applies records one by one."""

    def __init__(self, bounds: PendingConfig, max_kinds: int = 32, dedupe: DedupeConfig | None = None) -> None:
        self.items: dict[str, Item] = {}
        self.waiting: list[Record] = []
        self.letters: list[LetterFacts] = []
        self.offsets: dict[str, int] = {}
        self.kinds: list[str] = []
        self.stale = self.applied = self.duplicate = self.stream_time = 0
        self.seen: list[tuple[str, int]] = []
        self._dedupe = DedupeConfig() if dedupe is None else dedupe
        self._bounds = bounds
        self._max_kinds = max_kinds

    def apply(self, record: Record) -> None:
        self.offsets[record.source] = record.offset + 1
        self.stream_time = max(self.stream_time, record.at)
        self._expire()
        if record.kind is None:
            self._item(record)
        elif self._is_duplicate(record):
            self.duplicate += 1
        elif record.item_id in self.items:
            self._count(record)
        else:
            self.waiting.append(record)
            self._expire()

    def _item(self, record: Record) -> None:
        known = self.items.get(record.item_id)
        if known is None:
            self.items[record.item_id] = Item(record, record.at)
            ready = [waiting for waiting in self.waiting if waiting.item_id == record.item_id]
            self.waiting = [waiting for waiting in self.waiting if waiting.item_id != record.item_id]
            for waiting in sorted(ready, key=lambda waiting: (waiting.source, waiting.offset)):
                self._count(waiting)
        elif record.at < known.last.at:
            self.stale += 1
        else:
            lives_on = known.last.vector is not None and record.vector is not None
            known.created_at = known.created_at if lives_on else record.at
            known.last = record

    def _is_duplicate(self, record: Record) -> bool:
        if not self._dedupe.enabled or record.event_id is None:
            return False
        limit = self.stream_time - self._dedupe.window_s * 1_000
        self.seen = [(event_id, came) for event_id, came in self.seen if came >= limit]
        if any(event_id == record.event_id for event_id, _ in self.seen):
            return True
        self.seen = [*self.seen, (record.event_id, self.stream_time)][-self._dedupe.max_count :]
        return False

    def _count(self, engagement: Record) -> None:
        kind = engagement.kind or ""
        if kind not in self.kinds and len(self.kinds) >= self._max_kinds - 1:
            kind = "other"
        if kind not in self.kinds:
            self.kinds.append(kind)
        self.items[engagement.item_id].count(engagement, kind)
        self.applied += 1

    def _expire(self) -> None:
        while self.waiting:
            oldest = min(self.waiting, key=lambda waiting: (waiting.at, waiting.source, waiting.offset))
            if oldest.at < self.stream_time - self._bounds.max_age_s * 1_000:
                reason = Reason.ITEM_NEVER_CAME
            elif len(self.waiting) > self._bounds.max_count:
                reason = Reason.PENDING_OVERFLOW
            else:
                return
            self.waiting.remove(oldest)
            topic, _, number = oldest.source.rpartition("-")
            key, value = oldest.item_id.encode(), oldest.encoded
            self.letters.append(LetterFacts(reason, topic, int(number), oldest.offset, key, value))

    def state(self) -> LogicalState:
        live = sum(item.last.vector is not None for item in self.items.values())
        return LogicalState(
            items={item_id: facts(item) for item_id, item in self.items.items()},
            pending={(row.source, row.offset): (row.item_id, row.encoded) for row in self.waiting},
            totals={
                "items_live": live,
                "items_deleted": len(self.items) - live,
                "items_stale": self.stale,
                "engagements_applied": self.applied,
                "engagements_duplicate": self.duplicate,
                "records_lost": 0,
                "dead_letters": len(self.letters),
                "stream_time_ms": self.stream_time,
            },
            offsets=self.offsets,
            letters=dict.fromkeys(self.letters, 1),
            seen={
                (0, at): (hashlib.blake2b(event_id.encode(), digest_size=16).hexdigest(), came)
                for at, (event_id, came) in enumerate(self.seen)
            },
        )


def facts(item: Item) -> ItemFacts:
    event, live = item.last, item.last.vector is not None
    vectors = vectors_of([event.event]) if live else np.empty((0, 0, 0), np.float16)
    return ItemFacts(
        state="live" if live else "deleted",
        created_at=item.created_at,
        occurred_at=event.at,
        source=event.source,
        offset=event.offset,
        raw=tuple(assign(vectors)[0].tolist()) if live else (),
        labels=event.labels if live else UNLABELLED,
        content=hashlib.sha256(event.encoded).hexdigest() if live else "",
        vector=hashlib.sha256(vectors.tobytes()).hexdigest() if live else "",
        counts=tuple(sorted(item.counts.items())),
        decayed=tuple((epoch, total.hex()) for epoch, total in item.decayed),
        value_sum=item.value_sum.hex(),
        last_at=item.last_at,
    )
