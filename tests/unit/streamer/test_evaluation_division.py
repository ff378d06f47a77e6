"""Parts of a seed in processes of their own: all done once, evenly, and put together as one process would have it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.runtime import FrozenModel
from streamer.evaluation.division import cost, divided
from streamer.evaluation.lineup import LEARNING, parts
from streamer.evaluation.outcome import Outcome, Record, Requested, merged
from streamer.evaluation.run import evaluate
from streamer.evaluation.timeline import timeline_of
from tests.evaluation_logs import SETTINGS, random_log

FROM = 1_000_000


@given(st.integers(1, 20), st.booleans(), st.booleans())
def test_every_part_is_in_one_group(most, trained, full):
    everything = parts(trained=trained, full=full)
    groups = divided(everything, most)
    assert sorted(part.name for group in groups for part in group) == sorted(part.name for part in everything)
    assert len(groups) <= min(most, len(everything))
    assert [cost(group) for group in groups] == sorted(map(cost, groups), reverse=True)
    for group in groups:
        assert [everything.index(part) for part in group] == sorted(map(everything.index, group))


def test_a_seed_is_not_divided_where_there_is_no_process_for_it():
    everything = parts()
    assert divided(everything, 0) == divided(everything, 1) == [everything]
    assert {part.line for part in parts(full=False) + everything} == set(LEARNING)


def test_no_group_costs_more_than_need_be():
    costliest = [max(map(cost, divided(parts(), most))) for most in range(1, 8)]
    assert costliest == sorted(costliest, reverse=True)
    assert costliest[4] < 1.2 * max(cost([part]) for part in parts())


def test_a_line_that_begins_with_the_model_of_another_learns_nothing_beside_it():
    main, frozen = (next(part for part in parts() if part.line == line) for line in ("main", "frozen"))
    assert cost([main, frozen]) == cost([main]) + frozen.cost


def outcome(part, names, *, pooled=True, leaves=3):
    records = {name: Record.of(2) for name in names}
    requested = Requested(np.full(2, pooled), np.zeros(2, int), np.zeros(2, bool), np.full(2, 7))
    health = {"b": {"leaves": leaves}}
    return Outcome(requested, {part: tuple(names)}, records, health, {"main": [{"learn": 1.0, part: 2.0}]})


def test_outcomes_of_parts_become_one_in_the_order_of_the_lineup():
    whole = merged([outcome("two", ["c"]), outcome("one", ["b", "a"])], ["one", "two"], ["main"])
    assert list(whole.records) == ["b", "a", "c"]
    assert whole.health == {"b": {"leaves": 3}}
    assert whole.refreshes == {"main": [{"learn": 1.0, "one": 2.0, "two": 2.0}]}


@pytest.mark.parametrize("wrong", [{"pooled": False}, {"leaves": 4}])
def test_processes_that_came_to_different_ends_are_not_put_together(wrong):
    with pytest.raises(ValueError, match="differ"):
        merged([outcome("one", ["b"]), outcome("two", ["c"], **wrong)], ["one", "two"], ["main"])


def without_times(found):
    """A document without what depends on the machine."""
    if isinstance(found, dict):
        timed = ("queries_per_second", "mean_s", "max_s", "rate")
        return {key: without_times(value) for key, value in found.items() if not key.startswith(timed)}
    return [without_times(each) for each in found] if isinstance(found, list) else found


@pytest.mark.slow
def test_figures_are_the_same_from_one_process_and_from_many():
    pytest.importorskip("faiss")
    timeline, settings = timeline_of(random_log(6)), SETTINGS.model_copy(update={"seeds": 2})
    one, many = (orjson.loads(orjson.dumps(evaluate(timeline, settings, FROM, jobs=jobs))) for jobs in (1, 4))
    assert without_times(many) == without_times(one)
    assert [system["name"] for system in many["systems"]] == [system["name"] for system in one["systems"]]
    assert all(system["queries_per_second@100"] for system in many["systems"])
    kinds = {line: set(refreshes["mean_s"]) for line, refreshes in one["refreshes"].items()}
    assert {line: set(refreshes["mean_s"]) for line, refreshes in many["refreshes"].items()} == kinds


@pytest.mark.slow
def test_a_given_model_is_asked_by_many_processes_too():
    pytest.importorskip("faiss")
    timeline, model = timeline_of(random_log(7)), FrozenModel.untrained(2, 2, 3, 8)
    one, two = (evaluate(timeline, SETTINGS, FROM, model=model, jobs=jobs) for jobs in (1, 2))
    assert without_times(orjson.loads(orjson.dumps(two))) == without_times(orjson.loads(orjson.dumps(one)))


@pytest.mark.slow
def test_processes_of_an_evaluation_that_is_killed_end(tmp_path):
    with evaluating(tmp_path) as (process, found):
        process.kill()
        until(lambda: not any(map(runs, found)))


@pytest.mark.slow
def test_a_process_of_an_evaluation_that_is_killed_is_told_of(tmp_path):
    with evaluating(tmp_path) as (process, found):
        os.kill(found[0], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert b"DependencyError: a process of the evaluation ended without an answer" in said
        until(lambda: not any(map(runs, found)))


@contextmanager
def evaluating(tmp_path):
    """A process that has two do an evaluation, which they have begun, and those two."""
    asked = (
        "from streamer.evaluation.run import evaluate\n"
        "from streamer.evaluation.timeline import timeline_of\n"
        "from tests.evaluation_logs import SETTINGS, random_log\n"
        "settings = SETTINGS.model_copy(update={'seeds': 2})\n"
        f"evaluate(timeline_of(random_log(6)), settings, {FROM}, full=False, jobs=2)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", asked], env=environment, stderr=subprocess.PIPE) as process:
        try:
            until(lambda: len(list(tmp_path.glob("facetstream-evaluation-*"))) == 3, process)
            found = workers(process.pid)
            assert len(found) == 2
            yield process, found
        finally:
            process.kill()


def until(condition, process=None):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.01)


def workers(pid):
    """Processes that answer, which is not the one that counts what they share."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for path in tasks for child in path.read_text().split()]
    return [child for child in children if runs(child)]


def runs(pid):
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
