"""Engagements sent twice: which ``event_id`` came lately, bounded by age and number.

An engagement whose event_id is remembered is a duplicate: it is counted, and changes nothing but that stream time
advances with it as with every event. Whether it is remembered is decided record by record in the order in which events
are applied, so how the stream is cut into batches makes no difference:

    forget the oldest while they came more than ``window_s`` before this record, in stream time
    remembered: a duplicate; its entry is not renewed
    else: remember it, and forget the oldest above ``max_count``

Only engagements with an event_id do so. Each shard remembers its own. The store holds the same; what came while
``dedupe.enabled`` was off is not known when it is turned on again, what came before is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.write_batch import Batch
from schemas.config import DedupeConfig

_DIGEST_BYTES: Final = 16
_NEVER: Final = 1 << 62


@dataclass(slots=True)
class Judged:
    """What a batch does to the memory of event_ids.

    Attributes:
        duplicate: (m,) which engagements were seen before; None where none was.
        digests, times: those to remember, in order.
        forgotten: how many of the oldest are forgotten, the new ones after all old ones.
    """

    duplicate: npt.NDArray[np.bool_] | None
    digests: list[bytes]
    times: list[int]
    forgotten: int


class Seen:
    """Which event_ids came lately, oldest first; the image in memory of the store's ``seen`` family.

    An entry takes about 200 bytes.

    Args:
        bounds: of age and number.
        rows: the family's entries in key order.

    Raises:
        StoreCorruptError: if an entry does not decode.
    """

    def __init__(self, bounds: DedupeConfig, rows: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._window_ms = bounds.window_s * 1_000
        self._max_count = bounds.max_count
        self._digests: deque[bytes] = deque()
        self._times: deque[int] = deque()
        self._first = 0  # sequence number of the oldest
        for key, value in rows:
            digest, time_ms = read_entry(value)
            if not self._digests:
                self._first = keys.u64(key, "seen")
            self._digests.append(digest)
            self._times.append(time_ms)
        self._known = set(self._digests)

    def __len__(self) -> int:
        return len(self._digests)

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """(digest, stream time when it came), oldest first."""
        return zip(self._digests, self._times, strict=True)

    def judge(self, event_ids: Sequence[str | None], times: npt.NDArray[np.int64]) -> Judged:
        """Which of a batch's engagements are duplicates; nothing is changed here.

        Args:
            event_ids: (m,) in the order in which they are applied.
            times: (m,) stream time at each of them.
        """
        walk = _Walk(self)
        duplicates: list[int] = []
        for row, (event_id, now) in enumerate(zip(event_ids, times.tolist(), strict=True)):
            if event_id is None:
                continue
            digest = blake2b(event_id.encode(), digest_size=_DIGEST_BYTES).digest()
            if walk.oldest_ms < now - self._window_ms:
                walk.forget_before(now - self._window_ms)
            if digest in walk.fresh or (digest in self._known and digest not in walk.gone):
                duplicates.append(row)
            else:
                walk.remember(digest, now, self._max_count)
        duplicate = None
        if duplicates:
            duplicate = np.zeros(len(event_ids), np.bool_)
            duplicate[duplicates] = True
        return Judged(duplicate, walk.digests, walk.times, walk.forgotten)

    def put(self, judged: Judged, write: Batch) -> None:
        """Put into ``write`` what :meth:`apply` will do."""
        old = min(judged.forgotten, len(self._digests))
        skipped = judged.forgotten - old
        write.delete_many("seen", [keys.U64.pack(self._first + at) for at in range(old)])
        at = self._first + len(self._digests)
        added = range(skipped, len(judged.digests))
        write.put_many(
            "seen",
            [keys.U64.pack(at + number) for number in added],
            [keys.SEEN.pack(judged.digests[number], judged.times[number]) for number in added],
        )

    def apply(self, judged: Judged) -> None:
        """Remember and forget, once the batch is written."""
        self._digests += judged.digests
        self._times += judged.times
        old = len(self._digests) - len(judged.digests)
        self._first += judged.forgotten
        for _ in range(judged.forgotten):
            self._known.discard(self._digests.popleft())
            self._times.popleft()
        # Last: one that was forgotten may have come again.
        self._known.update(judged.digests[max(0, judged.forgotten - old) :])


class _Walk:
    """What is remembered between two records of :meth:`Seen.judge`.

    Attributes:
        oldest_ms: stream time at which the oldest came; the end of time when nothing is remembered.
        fresh: new ones that are not forgotten.
        gone: old ones that are.
    """

    def __init__(self, seen: Seen) -> None:
        self.digests: list[bytes] = []
        self.times: list[int] = []
        self.forgotten = 0
        self.fresh: set[bytes] = set()
        self.gone: set[bytes] = set()
        self._old = len(seen)
        self._entries = seen.entries()
        self._next = next(self._entries, None)
        self.oldest_ms = _NEVER if self._next is None else self._next[1]

    def forget_before(self, limit_ms: int) -> None:
        while self.oldest_ms < limit_ms:
            self._forget()

    def remember(self, digest: bytes, now_ms: int, most: int) -> None:
        while self._old + len(self.digests) - self.forgotten >= most:
            self._forget()
        self.fresh.add(digest)
        self.digests.append(digest)
        self.times.append(now_ms)
        self.oldest_ms = min(self.oldest_ms, now_ms)  # stream time never goes back: only where there was none

    def _forget(self) -> None:
        if self._next is not None:
            self.gone.add(self._next[0])
            self._next = next(self._entries, None)
        else:
            self.fresh.discard(self.digests[self.forgotten - self._old])
        self.forgotten += 1
        if self._next is not None:
            self.oldest_ms = self._next[1]
        else:
            at = self.forgotten - self._old
            self.oldest_ms = self.times[at] if at < len(self.times) else _NEVER


def read_entry(value: bytes) -> tuple[bytes, int]:
    """(digest, stream time) of one entry.

    Raises:
        StoreCorruptError: if the length is wrong.
    """
    if len(value) != keys.SEEN.size:
        raise keys.undecodable("seen", value)
    digest, time_ms = keys.SEEN.unpack(value)
    return digest, time_ms
