"""Item-kNN: what the users who engaged the triggers of late engaged besides, with popularity for a prior.

    score(j) = sum over triggers i of (c_ij + s p_j) / (n_i + s)

with c_ij users who engaged both within the horizon, n_i those who engaged i, p_j the share of j among engagements of
the last hour, and s what that share weighs: a trigger that few engaged says little. Counted over the log as it stands
at the request, without a model and without a rebuild.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from streamer.evaluation.neighbour_kernels import co_engaged
from streamer.evaluation.system import I32, I64, Found, News, Questions, pack, top

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel
    from model_runtime.training.data import TrainingLog
    from streamer.evaluation.past import Past

_MOST_USERS: Final = 2_000  # of a trigger; more tell nothing new
_MOST_EACH: Final = 64  # engagements of a user


class Histories:
    """Who engaged what, followed backwards from the present.

    Each engagement knows the one before it by the same user and the one before it of the same item; where these chains
    begin moves with the news, so nothing later is ever reached.

    Args:
        log: users and items of engagements.
        happened: how many of them have happened by now; of the others the news will tell.
    """

    def __init__(self, log: TrainingLog, happened: int) -> None:
        self.item: I32 = log.item
        self.user: I32 = log.user
        self.time: I64 = log.time
        self.before_by_user = _previous(log.user)
        self.before_of_item = _previous(log.item)
        self.last_by_user: I64 = np.full(log.users, -1, np.int64)
        self.last_of_item: I64 = np.full(len(log.item_ids), -1, np.int64)
        self._go_on(0, happened)

    def follow(self, news: News) -> None:
        """See :class:`streamer.evaluation.system.Follower`."""
        self._go_on(news.offset, news.offset + len(news.engaged))

    def refresh(self, model: FrozenModel) -> None:
        """See :class:`streamer.evaluation.system.Follower`."""

    def _go_on(self, begin: int, end: int) -> None:
        numbers = np.arange(begin, end)
        self.last_by_user[self.user[numbers]] = numbers  # of several the last one stays
        self.last_of_item[self.item[numbers]] = numbers


def _previous(keys: npt.NDArray[np.int32]) -> I64:
    """(n,) the latest earlier place with the same key, -1 where there is none."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    out = np.full(len(keys), -1, np.int64)
    out[order[1:][same]] = order[:-1][same]
    return out


class CoEngaged:
    """Item-kNN.

    Args:
        name: in the report.
        past: pool and popularity.
        histories: who engaged what.
        horizon_s: engagements that count.
        smoothing: s.
    """

    nested = True

    def __init__(
        self, name: str, past: Past, histories: Histories, horizon_s: float = 86_400, smoothing: float = 20.0
    ) -> None:
        self.name = name
        self._past = past
        self._histories = histories
        self._horizon_ms = int(horizon_s * 1_000)
        self._smoothing = smoothing
        self._both = np.zeros(len(past.live), np.int64)

    def answer(self, asked: Questions, k: int) -> Found:
        """See :class:`streamer.evaluation.system.System`."""
        past, histories = self._past, self._histories
        share = past.hour / max(1, int(past.hour.sum()))
        share = share + past.decayed()[:, -1] / (1e3 * max(1.0, float(past.decayed()[:, -1].sum())))  # for ties
        lists, scored = [], np.empty(len(asked), np.int64)
        for at, (triggers, seen) in enumerate(zip(asked.triggers, asked.seen, strict=True)):
            scores = np.zeros(len(share))
            met = np.zeros(len(share), np.bool_)
            for trigger in triggers[triggers >= 0].tolist():
                users = co_engaged(
                    trigger, asked.now_ms - self._horizon_ms, _MOST_USERS, _MOST_EACH,
                    histories.item, histories.user, histories.time, histories.before_by_user,
                    histories.before_of_item, histories.last_by_user, histories.last_of_item, self._both,
                )  # fmt: skip
                met |= self._both > 0
                scores += (self._both + self._smoothing * share) / (users + self._smoothing)
            scores[~past.live] = -np.inf
            scores[seen] = -np.inf
            scored[at] = np.count_nonzero(met)
            lists.append(top(scores, k))
        return Found(pack(lists, k), scored)
