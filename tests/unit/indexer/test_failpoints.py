"""Failpoints: what arms them, when they fail, and that nothing happens without them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from indexer import failpoints
from indexer.failpoints import POINTS, Failpoints, failpoint, no_failpoints
from schemas.errors import ConfigError, StoreError
from schemas.settings import FAILPOINTS_VARIABLE, load_settings
from tests.builders import assert_sound, fill, open_index, rebalance


def test_they_do_nothing_when_the_variable_is_unset():
    assert failpoint is failpoints._pass
    for name in POINTS:
        failpoint(name)


def test_a_place_fails_at_the_hit_it_was_told_and_only_then():
    armed = Failpoints("batch.after=error@3; wal.before=sleep:0")
    armed("batch.before")
    armed("wal.before")
    armed("batch.after")
    armed("batch.after")
    with pytest.raises(StoreError, match=r"batch\.after"):
        armed("batch.after")
    armed("batch.after")


def test_where_there_are_none_places_neither_act_nor_count():
    armed = Failpoints("batch.after=error@2")
    with no_failpoints():
        for _ in range(3):
            armed("batch.after")
    armed("batch.after")
    with pytest.raises(StoreError):
        armed("batch.after")


def test_one_place_can_fail_more_than_once():
    armed = Failpoints("wal.after=error;wal.after=error@2;")
    for _ in range(2):
        with pytest.raises(StoreError):
            armed("wal.after")
    armed("wal.after")


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("batch.befor=kill", r"unknown failpoint 'batch.befor' .* batch\.before"),
        ("batch.before", "unknown action ''"),
        ("batch.before=explode", "unknown action 'explode'"),
        ("batch.before=sleep", "sleep:250"),
        ("batch.before=sleep:x", "sleep:250"),
        ("batch.before=kill:3", "sleep:250"),
        ("batch.before=kill:x", "sleep:250"),
        ("batch.before=kill@0", "from 1"),
        ("batch.before=kill@", "from 1"),
        ("batch.before=kill@-1", "from 1"),
    ],
)
def test_a_wrong_word_is_named_with_what_is_known(spec, named):
    with pytest.raises(ConfigError, match=named) as caught:
        Failpoints(f"wal.before=kill;{spec}")
    assert FAILPOINTS_VARIABLE in str(caught.value)


def test_the_variable_is_no_unknown_setting():
    assert load_settings(environment={FAILPOINTS_VARIABLE: "batch.before=kill"}).origins == {}


_FILL = """
from pathlib import Path
import sys
from tests.builders import config, fill, open_index, rebalance
with open_index(Path(sys.argv[1])) as index:
    for first in range(0, 60, 20):
        fill(index, range(first, first + 20), start=first)
        index.store.sync()
    rebalance(index, config(rebalance={"low": 1, "high": 8, "reassign": True}))
"""


def test_the_variable_arms_a_process_and_is_refused_when_wrong(tmp_path):
    found = _run(tmp_path / "a", "batch.before=explode")
    assert found.returncode == 1
    assert "unknown action 'explode'" in found.stderr


@pytest.mark.parametrize(
    ("spec", "batches"),
    [
        ("batch.before=kill@2", 1),
        ("batch.after=kill@2", 2),
        ("wal.before=kill@3", 2),
        ("wal.after=kill@3", 2),
        ("bounds.before=kill", 3),
        ("bounds.after=kill", 3),
        ("split.planned=kill", 3),
        ("split.before=kill", 3),
        ("split.after=kill", 3),
        ("recenter.before=kill", 3),
        ("recenter.after=kill", 3),
        ("reassign.before=kill", 3),
        ("reassign.after=kill", 3),
    ],
)
def test_a_killed_process_leaves_a_sound_store_and_the_rest_can_follow(tmp_path, spec, batches):
    assert _run(tmp_path, spec).returncode == -signal.SIGKILL
    with open_index(tmp_path) as index:
        assert len(index.view.ids) == 20 * batches
        assert_sound(index.store, allow_unbalanced=True)
        if batches < 3:
            fill(index, range(20 * batches, 60), start=20 * batches)
        rebalance(index)
        assert_sound(index.store)


def test_merges_and_marks_pass_their_places(tmp_path, monkeypatch):
    passed = []
    for room in ("merge", "marks", "split", "compactor"):
        monkeypatch.setattr(f"indexer.rebalance.{room}.failpoint", passed.append)
    for name, seeds in (("different", list(range(60))), ("identical", [7] * 30)):
        with open_index(tmp_path / name) as index:
            fill(index, seeds)
            rebalance(index)
    for name in ("merge.planned", "merge.before", "merge.after", "mark.before", "mark.after", "split.after"):
        assert name in passed
    assert passed.count("merge.before") == passed.count("merge.after")


def _run(path: Path, spec: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _FILL, str(path)],
        env=os.environ | {FAILPOINTS_VARIABLE: spec, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
