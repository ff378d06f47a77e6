"""The whole comparison on a tiny log: nothing of the future is used, runs repeat, the documents are whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest

from model_runtime.runtime import FrozenModel
from streamer.evaluation import document, lineup
from streamer.evaluation.bench import Stage
from streamer.evaluation.lineup import lines
from streamer.evaluation.outcome import CUTS
from streamer.evaluation.past import Past
from streamer.evaluation.replay import Schedule, replay
from streamer.evaluation.requests import build_requests
from streamer.evaluation.run import evaluate
from streamer.evaluation.timeline import timeline_of
from tests.evaluation_logs import SETTINGS, Remembered, random_log

FROM, UNTIL = 1_000_000, 1_600_000
SCHEDULE = Schedule(tick_ms=10_000, refresh_ms=400_000)


def answers_of(log, scratch, until=UNTIL, seed=0):
    """What every system answered to the requests before ``until``, and the outcome."""
    requests = build_requests(log, FROM, until)
    remembered = []

    def watched(team):
        team.systems = [Remembered(system) for system in team.systems]
        remembered.extend(team.systems)
        return team

    made = [
        replace(line, team=lambda past, model, make=line.team: watched(make(past, model)))
        for line in lines(Stage(log, SETTINGS, scratch, seed), None, lambda _: None)
    ]
    past = Past(timeline_of(log), SETTINGS.counters.half_lives_s, SETTINGS.pool_s)
    outcome = replay(timeline_of(log), requests, past, made, SCHEDULE, FROM)
    return {system.name: system.answers for system in remembered}, outcome


def with_another_future(log, from_ms, seed):
    """The same up to a moment; then other users engage other items at other times, and items come at other times."""
    rng = np.random.default_rng(seed)
    later = log.time >= from_ms
    count = int(later.sum())
    item, user, time, created_at = log.item.copy(), log.user.copy(), log.time.copy(), log.created_at.copy()
    item[later] = rng.integers(0, len(log.item_ids), count)
    user[later] = rng.integers(0, log.users, count)
    time[later] = np.sort(rng.integers(from_ms, from_ms + 500_000, count))
    unborn = created_at >= from_ms
    created_at[unborn] = rng.integers(from_ms, from_ms + 500_000, int(unborn.sum()))
    return replace(log, item=item, user=user, session=user, time=time, created_at=created_at)


@pytest.fixture(autouse=True)
def _faiss():
    pytest.importorskip("faiss")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_another_future_changes_no_answer_before_it(tmp_path, seed):
    log = random_log(seed)
    found, outcome = answers_of(log, tmp_path / "one")
    changed, other = answers_of(with_another_future(log, UNTIL, seed), tmp_path / "two")
    assert found.keys() == changed.keys()
    for name, answers in found.items():
        assert len(answers) == len(changed[name]) > 0
        for one, two in zip(answers, changed[name], strict=True):
            assert np.array_equal(one.rows, two.rows), name
            assert np.array_equal(one.scored, two.scored), name
    assert np.array_equal(outcome.requested.pooled, other.requested.pooled)
    assert np.array_equal(outcome.requested.earlier, other.requested.earlier)
    assert np.array_equal(outcome.requested.tail, other.requested.tail)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_answers_and_another_one_others(tmp_path):
    log = random_log(3)
    (one, _), (two, _), (other, _) = (
        answers_of(log, tmp_path / str(at), seed=seed) for at, seed in enumerate((0, 0, 1))
    )
    for name in one:
        assert all(np.array_equal(a.rows, b.rows) for a, b in zip(one[name], two[name], strict=True)), name
    alike = [np.array_equal(a.rows, b.rows) for a, b in zip(one[lineup.EXACT], other[lineup.EXACT], strict=True)]
    assert not all(alike)


def test_no_answer_holds_what_was_seen_or_is_not_in_the_pool(tmp_path):
    log = random_log(4)
    model = FrozenModel.untrained(2, 2, 3, 8)
    seen_by, live_at = [], []

    class Judge:
        name, nested = "judge", True

        def __init__(self, past, systems):
            self.past, self.systems = past, systems

        def answer(self, asked, k):
            live_at.append(len(asked))
            for system in self.systems:
                rows = system.answer(asked, k).rows
                for mine, seen in zip(rows, asked.seen, strict=True):
                    given = mine[mine >= 0]
                    assert len(np.unique(given)) == len(given), system.name
                    assert not np.isin(given, seen).any(), system.name
                    assert self.past.live[given].all(), system.name
                    seen_by.append(len(given))
            return self.systems[0].answer(asked, k)

    def judged(past, model, make):
        team = make(past, model)
        team.systems = [Judge(past, team.systems)]
        return team

    made = [
        replace(line, team=lambda past, model, make=line.team: judged(past, model, make))
        for line in lines(Stage(log, SETTINGS, tmp_path, 0), model, lambda _: None)
    ]
    past = Past(timeline_of(log), SETTINGS.counters.half_lives_s, SETTINGS.pool_s)
    replay(timeline_of(log), build_requests(log, FROM), past, made, SCHEDULE, FROM)
    assert sum(live_at) > 0
    assert max(seen_by) > 5


def test_refreshes_come_when_due_and_only_with_newer_models(tmp_path):
    log = random_log(5)
    requests = build_requests(log, FROM)
    past = Past(timeline_of(log), SETTINGS.counters.half_lives_s, SETTINGS.pool_s)
    told = []

    class Watch:
        def first(self, log):  # noqa: ARG002
            return FrozenModel.untrained(2, 2, 3, 8)

        def next(self, log, now_ms):
            told.append(now_ms)
            assert (log.time < now_ms).all()
            assert (log.created_at < now_ms).all()
            return FrozenModel.untrained(2, 2, 3, 8, seed=1) if len(told) == 1 else None

    (line,) = lines(Stage(log, SETTINGS, tmp_path, 0), None, lambda _: None, full=False)
    outcome = replay(timeline_of(log), requests, past, [replace(line, learner=Watch())], SCHEDULE, FROM)
    assert told == [1_400_000, 1_800_000]
    assert len(outcome.refreshes["index"]) == 1
    assert {"learn", "embeddings", "index of MFLI"} <= outcome.refreshes["index"][0].keys()


@pytest.mark.slow
def test_the_document_tells_every_system_and_makes_a_page(tmp_path):
    pytest.importorskip("matplotlib")
    log = random_log(6)
    found = orjson.loads(orjson.dumps(evaluate(timeline_of(log), SETTINGS, FROM)))
    names = [system["name"] for system in found["systems"]]
    assert len(set(names)) == len(names)
    assert {lineup.POPULAR, lineup.KNN, lineup.EXACT, lineup.RQ, lineup.MFLI_PRIOR, lineup.HYBRID} <= set(names)
    for system in found["systems"]:
        assert all(0 <= system[f"recall@{cut}"] <= 1 for cut in CUTS)
    assert found["queries"] + found["left_out"] == len(build_requests(log, FROM))
    assert found["comparisons"]["wished"]
    assert found["comparisons"]["ablations"]
    assert found["index"][lineup.MFLI]["within_bounds_share"] == 1.0
    folder = tmp_path / "docs" / "evaluation"
    folder.mkdir(parents=True)
    (folder / "tiny.json").write_bytes(orjson.dumps(found))
    assert document.main([folder / "tiny.json"]) == 0
    page = (tmp_path / "docs" / "evaluation.md").read_text()
    assert "Where it loses" in page
    assert all(f"| {name} |" in page for name in names)
    assert (folder / "tiny-recall-100.svg").exists()


def test_a_given_model_is_evaluated_as_it_is():
    log = random_log(7)
    found = evaluate(timeline_of(log), SETTINGS, FROM, model=FrozenModel.untrained(2, 2, 3, 8), full=False)
    assert found["seeds"] == 1
    assert found["refreshes"]["index"]["count"] == 0
