"""The hot list: the live items of greatest impact, whoever asks, see :mod:`indexer.order`.

The greater float32 impact comes first, of equals the greater ordinal. It ends after :data:`LONGEST` items, and until
there it is exact as of the last batch.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from indexer.keys import ItemState
from indexer.order import Impact, impact_of

if TYPE_CHECKING:
    from indexer.view import LiveView

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]

LONGEST: Final = 4_096
"""Items of the list."""
_ROOM: Final = 2
"""Times as many candidates are kept; the least are let go when they are twice as many again."""
_MOST_WAITING: Final = 1 << 18
"""Changes that wait for the next request; after more, which nobody asked about, the list is forgotten."""
_SIGN = np.uint32(1 << 31)
_LOWER = np.uint64(0xFFFFFFFF)


class Hot(NamedTuple):
    """n items, the hottest first.

    Attributes:
        ordinal: (n,).
        impact: (n,) float32; by the model's own prior it is what the item is worth, else engagements as of a landmark.
        created_at, labels: (n,) of the items, which filters ask for.
        half_life_ms: of the engagements; 0 where impacts are worths.
        landmark: of the engagements, half-lives since 1970.
    """

    ordinal: I64
    impact: F32
    created_at: I64
    labels: npt.NDArray[np.uint32]
    half_life_ms: float
    landmark: int

    def scores(self, impacts: npt.NDArray[np.floating[Any]], now_ms: int) -> npt.NDArray[np.float64]:
        """(n,) scores of items of the list: what they are worth, or log(1 + decayed engagements) as of now."""
        if not self.half_life_ms:
            return impacts.astype(np.float64)
        kept = min(max(self.landmark - now_ms / self.half_life_ms, -1_000.0), 100.0)
        return np.asarray(np.log1p(impacts.astype(np.float64) * 2.0**kept))

    @classmethod
    def of(cls, keys: U64, impact: Impact, landmark: int, created_at: I64, labels: npt.NDArray[np.uint32]) -> Hot:
        """From keys, the greatest first, and what filters ask for."""
        half_life_ms = 0.0 if impact.learned else impact.half_life_s * 1_000.0
        return cls(ordinals_of(keys), impacts_of(keys), created_at, labels, half_life_ms, landmark)


def hot_keys(impact: Impact, ordinals: I64, heats: F32, created_at: I64, landmark: int) -> U64:
    """(n,) keys of items: the hotter, the greater, and of one ordinal each."""
    hot = heats
    if impact.creation:
        whole = impact_of(heats, created_at, impact.creation, impact.half_life_s, landmark)
        hot = np.minimum(whole, np.finfo(np.float32).max).astype(np.float32)
    bits = (hot + np.float32(0)).view(np.uint32)  # nothing is less than nothing
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (ordered.astype(np.uint64) << np.uint64(32)) | ordinals.astype(np.uint64)


def hottest(keys: U64, most: int) -> U64:
    """The greatest ``most`` keys, ascending."""
    if len(keys) > most:
        keys = np.partition(keys, len(keys) - most)[len(keys) - most :]
    return np.sort(keys)


def ordinals_of(keys: U64) -> I64:
    """(n,) ordinals of keys."""
    return (keys & _LOWER).astype(np.int64)


def impacts_of(keys: U64) -> F32:
    """(n,) impacts of keys."""
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    return np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered).astype(np.uint32).view(np.float32)


class HotList:
    """The hot list of a live view, kept once somebody has asked for it.

    The writer only notes what it changed. The next request puts that in its place among some more candidates than the
    list is long: no item beyond these is hotter than the least of them, so that the list stays exact. All items are
    looked at when the list is first asked for, when the landmark moves, and when too many candidates have cooled down.

    Args:
        view: whose; :meth:`touch` and :meth:`restart` expect its lock to be held, :meth:`shown` to be shared.
        longest: items of the list.
    """

    def __init__(self, view: LiveView, longest: int = LONGEST) -> None:
        self._view = view
        self._longest = longest
        self._mutex = threading.Lock()  # requests share the view's lock
        self._keys: U64 | None = None
        self._least = np.uint64(0)
        self._waiting: list[npt.NDArray[np.integer[Any]]] = []
        self._waits = 0
        self._shown: Hot | None = None

    def touch(self, ordinals: npt.NDArray[np.integer[Any]]) -> None:
        """Note items that changed, or their counters."""
        if self._keys is None or not len(ordinals):
            return
        self._waiting.append(ordinals)
        self._waits += len(ordinals)
        if self._waits > _MOST_WAITING:
            self._forget(None)

    def restart(self, heats: F32) -> None:
        """Begin anew, with the heats of all items as of another landmark."""
        if self._keys is not None:
            self._begin(heats)

    def shown(self) -> Hot:
        """The list."""
        with self._mutex:
            if self._keys is None:
                self._begin(None)
            elif self._waiting:
                self._go_on(self._keys)
            if self._shown is None:
                self._shown = self._list()
            return self._shown

    def _forget(self, keys: U64 | None) -> None:
        self._keys, self._shown = keys, None
        self._waiting, self._waits = [], 0

    def _begin(self, heats: F32 | None) -> None:
        live = np.flatnonzero(self._view.items["state"] == ItemState.LIVE)
        every = self._of(live, self._view.heats(live) if heats is None else heats[live])
        keys = hottest(every, _ROOM * self._longest)
        self._least = keys[0] if len(keys) < len(every) else np.uint64(0)
        self._forget(keys)

    def _go_on(self, keys: U64) -> None:
        items = self._view.items
        changed = np.zeros(len(items), np.bool_)
        for ordinals in self._waiting:
            changed[ordinals] = True
        rows = np.flatnonzero(changed)
        rows = rows[items["state"][rows] == ItemState.LIVE]
        new = self._of(rows, self._view.heats(rows))
        kept = keys[~changed[ordinals_of(keys)]]
        keys = np.sort(np.concatenate([kept, new[new >= self._least]]))
        if len(keys) < self._longest and self._least:
            self._begin(None)
            return
        if len(keys) > 2 * _ROOM * self._longest:
            keys = keys[-_ROOM * self._longest :]
            self._least = keys[0]
        self._forget(keys)

    def _of(self, ordinals: I64, heats: F32) -> U64:
        view = self._view
        return hot_keys(view.impact, ordinals, heats, view.items["created_at"][ordinals], view.landmark)

    def _list(self) -> Hot:
        assert self._keys is not None
        keys, view = self._keys[::-1][: self._longest], self._view
        rows = ordinals_of(keys)
        return Hot.of(keys, view.impact, view.landmark, view.items["created_at"][rows], view.items["labels"][rows])
