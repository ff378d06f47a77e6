"""What training reads: items with content and engagements as parallel arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from schemas.events import ItemContent

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

NO_SESSION = -1


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """Items and engagements of one span of time.

    Attributes:
        item_ids: (N,) identifiers.
        contents: (N,) what the encoder sees of each item.
        created_at: (N,) int64, epoch milliseconds of each item's first creation.
        user: (E,) int32 index of the user; engagements are ordered by time, equal times in log order.
        item: (E,) int32 row of the item.
        time: (E,) int64 epoch milliseconds.
        kind: (E,) int32 index into ``kinds``.
        value: (E,) float32, NaN where an engagement carries none.
        session: (E,) int32 index of the session, -1 where an engagement carries none.
        users: how many users there are.
        kinds: names of engagement kinds.
        skipped: how many records of the source were left out, by reason.
    """

    item_ids: tuple[str, ...]
    contents: tuple[ItemContent, ...]
    created_at: Int64Array
    user: Int32Array
    item: Int32Array
    time: Int64Array
    kind: Int32Array
    value: npt.NDArray[np.float32]
    session: Int32Array
    users: int
    kinds: tuple[str, ...]
    skipped: dict[str, int]

    def __post_init__(self) -> None:
        columns = (self.user, self.item, self.time, self.kind, self.value, self.session)
        if len({len(column) for column in columns}) != 1:
            raise ValueError("engagement columns differ in length")
        if not len(self.item_ids) == len(self.contents) == len(self.created_at):
            raise ValueError("item columns differ in length")
        if (np.diff(self.time) < 0).any():
            raise ValueError("engagements are not ordered by time")

    def before(self, until_ms: int) -> TrainingLog:
        """The part strictly before a moment: later engagements and later items are gone, rows are renumbered.

        Contents stay as they are; a reader that knows their history bounds them (``content_until_ms``).
        """
        seen = self.time < until_ms
        if seen.all() and (self.created_at < until_ms).all():
            return self
        return self._part(np.flatnonzero(self.created_at < until_ms), seen)

    def of_users(self, users: npt.NDArray[np.integer], end: int) -> TrainingLog:
        """The engagements of some users among the first ``end`` ones; the items stay as they are."""
        chosen = np.zeros(self.users, np.bool_)
        chosen[users] = True
        seen = chosen[self.user]
        seen[end:] = False
        return self._part(np.arange(len(self.item_ids)), seen)

    def of_items(self, rows: Int64Array) -> TrainingLog:
        """Some items, ascending rows, with their engagements; rows are renumbered."""
        return self._part(rows, np.ones(len(self.user), np.bool_))

    def _part(self, rows: Int64Array, seen: npt.NDArray[np.bool_]) -> TrainingLog:
        everything = len(rows) == len(self.item_ids)
        item = self.item
        if not everything:
            number = np.full(len(self.item_ids), -1, np.int32)
            number[rows] = np.arange(len(rows), dtype=np.int32)
            item = number[self.item]
            seen = seen & (item >= 0)
        return TrainingLog(
            item_ids=self.item_ids if everything else tuple(self.item_ids[i] for i in rows),
            contents=self.contents if everything else tuple(self.contents[i] for i in rows),
            created_at=self.created_at[rows],
            user=self.user[seen],
            item=item[seen],
            time=self.time[seen],
            kind=self.kind[seen],
            value=self.value[seen],
            session=self.session[seen],
            users=self.users,
            kinds=self.kinds,
            skipped=self.skipped,
        )
