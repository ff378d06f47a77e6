"""Requests of the past: who asked when, knowing what, and what they went on to engage with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from streamer.evaluation.system import I32, I64, Questions

if TYPE_CHECKING:
    from model_runtime.training.data import TrainingLog

MAX_TRIGGERS: Final = 5


@dataclass(frozen=True, slots=True)
class Requests:
    """Q past requests, in time order.

    Attributes:
        user: (Q,) int32.
        time: (Q,) int64 epoch milliseconds.
        triggers: (Q, 5) int32 item rows, the user's latest distinct items strictly before, newest first, then -1.
        target: (Q,) int32 item row, which the user engaged with for the first time.
        seen: Q arrays of all item rows the user had touched strictly before.
        eligible: how many requests the span held before sampling.
    """

    user: I32
    time: I64
    triggers: I32
    target: I32
    seen: tuple[I32, ...]
    eligible: int

    def __len__(self) -> int:
        return len(self.target)

    def asked(self, begin: int, end: int, now_ms: int) -> Questions:
        """Some of them, as asked at ``now_ms``."""
        return Questions(now_ms, self.triggers[begin:end], self.seen[begin:end])


def build_requests(
    log: TrainingLog, from_ms: int, to_ms: int | None = None, most: int | None = None, seed: int = 0
) -> Requests:
    """Every first meeting of a user with an item in [from_ms, to_ms) of which the user has a history.

    Args:
        log: engagements, ordered by time.
        from_ms: epoch milliseconds.
        to_ms: epoch milliseconds; None: to the end.
        most: a sample of at most so many.
        seed: of the sample.
    """
    order = np.lexsort((log.time, log.user))  # stable: equal times stay in log order
    item, time = log.item[order], log.time[order]
    first = np.searchsorted(log.user[order], np.arange(log.users + 1))
    _, meetings = np.unique(log.user.astype(np.int64) * len(log.item_ids) + log.item, return_index=True)
    stop = np.iinfo(np.int64).max if to_ms is None else to_ms
    rows = np.sort(meetings)
    rows = rows[(log.time[rows] >= from_ms) & (log.time[rows] < stop)]
    begins = np.full(log.users, np.iinfo(np.int64).max)
    occupied = np.flatnonzero(np.diff(first))
    begins[occupied] = time[first[occupied]]
    rows = rows[begins[log.user[rows]] < log.time[rows]]
    eligible = len(rows)
    if most is not None and eligible > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    triggers = np.full((len(rows), MAX_TRIGGERS), -1, np.int32)
    seen = []
    for at, (user, now) in enumerate(zip(log.user[rows].tolist(), log.time[rows].tolist(), strict=True)):
        start, end = first[user], first[user + 1]
        history = item[start : start + np.searchsorted(time[start:end], now)]
        latest = list(dict.fromkeys(history[::-1].tolist()))
        triggers[at, : min(MAX_TRIGGERS, len(latest))] = latest[:MAX_TRIGGERS]
        seen.append(np.array(latest, np.int32))
    return Requests(log.user[rows], log.time[rows], triggers, log.item[rows], tuple(seen), eligible)
