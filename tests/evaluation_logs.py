"""Small logs for tests of the evaluation, and a system that remembers what others answered."""

from __future__ import annotations

import numpy as np

from model_runtime.training.data import TrainingLog
from schemas.evaluation import EvaluationSettings
from schemas.events import ItemContent
from streamer.evaluation.system import Found, Questions, System

SETTINGS = EvaluationSettings.model_validate(
    {
        "name": "tiny",
        "requests": 1_000,
        "seeds": 1,
        "pool_s": 2_000,
        "tick_s": 10,
        "refresh_s": 400,
        "rebalance_s": 50,
        "counters": {"half_lives_s": [60, 600]},
        "rebalance": {"low": 2, "high": 12},
        "retrieval": {"vote_share": 0.0, "scan": 100, "indices": 1_000, "probes": 1_000, "decay": 0},
        "budgets": [[0, 4, 3], [1, 8, 30]],
        "fetches": [1, 8],
        "training": {
            "steps": 4,
            "codewords": 3,
            "dim": 8,
            "token_dim": 8,
            "hidden": [8],
            "pairs": 16,
            "negatives": 16,
            "head": 8,
            "labels": [{"name": "next", "kind": "next"}, {"name": "session", "kind": "session"}],
            "refresh": {"steps": 2},
            "prior": {"half_lives_s": [60, 600]},
        },
    }
)


def log_of(events, created, users=3) -> TrainingLog:
    """Events are (user, item, time in ms), ordered by time."""
    user, item, time = (np.array(column) for column in zip(*events, strict=True))
    return TrainingLog(
        item_ids=tuple(f"i{i}" for i in range(len(created))),
        contents=tuple(ItemContent(title=f"word{i % 7} other{i % 11}") for i in range(len(created))),
        created_at=np.array(created, np.int64),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        time=time.astype(np.int64),
        kind=np.zeros(len(events), np.int32),
        value=np.full(len(events), np.nan, np.float32),
        session=user.astype(np.int32),
        users=users,
        kinds=("click",),
        skipped={},
    )


def random_log(seed: int = 0, items: int = 60, events: int = 400, users: int = 20) -> TrainingLog:
    """Items come one by one over 2,000 seconds; each is engaged at random from then on, some more than others."""
    rng = np.random.default_rng(seed)
    created = np.sort(rng.integers(0, 2_000_000, items))
    created[: items // 3] = np.arange(items // 3)
    time = np.sort(rng.integers(1_000, 2_000_000, events))
    born = np.searchsorted(created, time)
    item = (rng.random(events) ** 2 * born).astype(int)
    return log_of(
        list(zip(rng.integers(0, users, events).tolist(), item.tolist(), time.tolist(), strict=True)), created, users
    )


class Remembered:
    """A system and all that it answered."""

    def __init__(self, system: System) -> None:
        self.name = system.name
        self.nested = system.nested
        self.answers: list[Found] = []
        self._system = system

    def answer(self, asked: Questions, k: int) -> Found:
        self.answers.append(self._system.answer(asked, k))
        return self.answers[-1]
