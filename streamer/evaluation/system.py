"""What is compared: systems that answer requests, and what must be told of the past to keep them up to date."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_runtime.runtime import FrozenModel

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Questions:
    """q requests asked at one moment.

    Attributes:
        now_ms: nothing at or after it is known to anyone.
        triggers: (q, T) int32 item rows, newest first, -1 where there are fewer.
        seen: q arrays of item rows that the user had touched, triggers among them; no answer may hold them.
    """

    now_ms: int
    triggers: I32
    seen: Sequence[I32]

    def __len__(self) -> int:
        return len(self.triggers)


@dataclass(frozen=True, slots=True)
class Found:
    """Answers to q requests.

    Attributes:
        rows: (q, k) int32 item rows, best first, distinct; -1 where there are fewer.
        scored: (q,) int64, items whose score was computed for the request alone.
    """

    rows: I32
    scored: I64


@dataclass(frozen=True, slots=True)
class News:
    """What happened since the last news, up to but not including ``now_ms``.

    Attributes:
        arrived: (a,) int32 rows of items that were created, changed, or came back into the pool; distinct.
        arrived_at: (a,) int64 epoch milliseconds.
        left: (l,) int32 rows of items that left the pool.
        engaged: (e,) int32 rows of items engaged, in time order.
        engaged_at: (e,) int64 epoch milliseconds.
        offset: how many engagements were told before.
    """

    now_ms: int
    arrived: I32
    arrived_at: I64
    left: I32
    engaged: I32
    engaged_at: I64
    offset: int


class Follower(Protocol):
    """Something that is kept up to date with the past."""

    def follow(self, news: News) -> None:
        """Take note of what happened."""
        ...

    def refresh(self, model: FrozenModel) -> None:
        """Go over to a newer model."""
        ...


class System(Protocol):
    """Something that answers requests from what its followers know.

    Attributes:
        name: in the report.
        nested: the best k are the first k of the best of more, so that it need be asked but once.
    """

    name: str

    @property
    def nested(self) -> bool:  # read only, so that classes may fix it
        """See above."""
        ...

    def answer(self, asked: Questions, k: int) -> Found:
        """The k best items of the pool for each request."""
        ...


def pack(lists: Sequence[npt.NDArray[np.integer]], k: int) -> I32:
    """Row lists of any length as (q, k), cut or padded with -1."""
    out = np.full((len(lists), k), -1, np.int32)
    for at, rows in enumerate(lists):
        out[at, : min(k, len(rows))] = rows[:k]
    return out


def top(scores: npt.NDArray[np.floating], k: int) -> I64:
    """Places of the k greatest of (n,) scores, best first; ties by place, so that runs repeat; -inf never."""
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least)
    else:
        places = np.arange(len(scores))
    places = places[np.argsort(-scores[places], kind="stable")][:k]
    return places[scores[places] > -np.inf]
