"""Compiled walks over engagement chains."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from indexer.compiling import njit

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@njit(cache=True)
def co_engaged(
    trigger: int,
    since_ms: int,
    most_users: int,
    most_each: int,
    item: I32,
    user: I32,
    time: I64,
    before_by_user: I64,
    before_of_item: I64,
    last_by_user: I64,
    last_of_item: I64,
    both: I64,
) -> int:
    """Count, for every item, the users who engaged it and the trigger since a moment; returns how many did the latter.

    The latest ``most_users`` users of the trigger are looked at, the latest ``most_each`` engagements of each. ``both``
    (N,) is overwritten. Chains are as :class:`streamer.evaluation.neighbours.Histories` keeps them.
    """
    both[:] = 0
    users = 0
    at = last_of_item[trigger]
    mine = np.empty(most_each, np.int32)
    while at >= 0 and time[at] >= since_ms and users < most_users:
        other = last_by_user[user[at]]
        count = 0
        latest = True  # a user who engaged the trigger twice counts once
        while other >= 0 and time[other] >= since_ms and count < most_each:
            if item[other] == trigger:
                if other > at:
                    latest = False
                    break
            else:
                known = False
                for earlier in range(count):
                    if mine[earlier] == item[other]:
                        known = True
                        break
                if not known:
                    mine[count] = item[other]
                    count += 1
            other = before_by_user[other]
        if latest:
            users += 1
            for each in range(count):
                both[mine[each]] += 1
        at = before_of_item[at]
    return users
