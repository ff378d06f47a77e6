"""Lists that are the same for everyone: what is clicked, what is new, what the prior likes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from streamer.evaluation.system import I64, Found, Questions, System, pack, top

if TYPE_CHECKING:
    from streamer.evaluation.past import Past


class Ranking(Protocol):
    """One order of the pool."""

    def best(self, k: int) -> I64:
        """The rows of the first k."""
        ...


class Clicked:
    """By engagements of the last hour, or decayed ones of a window; ties by recency of creation.

    Args:
        past: counts.
        window: which half-life; None: the last hour, all alike.
    """

    def __init__(self, past: Past, window: int | None) -> None:
        self._past = past
        self._window = window

    def best(self, k: int) -> I64:
        """See :class:`Ranking`."""
        past = self._past
        counts = past.hour if self._window is None else past.decayed()[:, self._window]
        live = np.flatnonzero(past.live)
        order = np.lexsort((-past.created_at[live], -counts[live]))
        return np.asarray(live[order[:k]])


class Newest:
    """Latest into the pool first."""

    def __init__(self, past: Past) -> None:
        self._past = past

    def best(self, k: int) -> I64:
        """See :class:`Ranking`."""
        live = np.flatnonzero(self._past.live)
        return np.asarray(live[top(self._past.created_at[live].astype(np.float64), k)])


class Listed:
    """A system that gives everyone one list, less what each has seen. Nothing is scored for a request.

    Args:
        name: in the report.
        ranking: the list.
    """

    nested = True

    def __init__(self, name: str, ranking: Ranking) -> None:
        self.name = name
        self._ranking = ranking

    def answer(self, asked: Questions, k: int) -> Found:
        """See :class:`streamer.evaluation.system.System`."""
        most = max((len(seen) for seen in asked.seen), default=0)
        best = self._ranking.best(k + most).astype(np.int32)
        rows = [best[~np.isin(best, seen)] for seen in asked.seen]
        return Found(pack(rows, k), np.zeros(len(asked), np.int64))


class Halves:
    """Half of the places to a list, the other half to retrieval; what either lacks the other fills.

    Args:
        name: in the report.
        ranking: the list.
        retrieval: gives the rest.
    """

    nested = False

    def __init__(self, name: str, ranking: Ranking, retrieval: System) -> None:
        self.name = name
        self._ranking = ranking
        self._retrieval = retrieval

    def answer(self, asked: Questions, k: int) -> Found:
        """See :class:`streamer.evaluation.system.System`."""
        listed = Listed("", self._ranking).answer(asked, k).rows
        found = self._retrieval.answer(asked, k)
        rows = []
        for ours, theirs in zip(listed, found.rows, strict=True):
            head = ours[: (k + 1) // 2]
            rest = theirs[~np.isin(theirs, head)][: k - len(head)]
            fill = ours[len(head) :]
            row = np.concatenate([head, rest, fill[~np.isin(fill, rest)]])
            rows.append(row[row >= 0])
        return Found(pack(rows, k), found.scored)
