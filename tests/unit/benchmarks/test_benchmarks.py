"""Each benchmark at a tiny size: it runs, and prints one valid JSON document. Nothing is said about how fast."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.__main__ import NAMES
from benchmarks.load import crowd_lines, embeddings, engagement_lines, item_id, item_lines, topical_lines
from benchmarks.report import Result, alternating
from schemas.events import ENGAGEMENT, ITEM_EVENT

SMALL = {
    "retrieval": ["--requests", "20"],
    "recovery": ["--size", "500"],
    "refresh": ["--rate", "20", "--calm", "0.5", "--first-steps", "4"],
}
SLOW = {"recovery": [pytest.mark.slow], "refresh": [pytest.mark.slow]}  # they start the daemon and other commands


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, [])) for name in NAMES])
def test_prints_one_document_with_measures_ratios_and_goals(name):
    if name == "ann":
        pytest.importorskip("faiss", reason="the peer of this benchmark comes with the extra bench")
    small = ["--size", "1500", "--repeats", "1", "--no-broker", "--in-process", *SMALL.get(name, [])]
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *small]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["benchmark"] == name
    assert set(document) == {
        "benchmark",
        "machine",
        "settings",
        "measures",
        "ratios",
        "goals",
        "skipped",
        "details",
        "plots",
    }
    if name in {"freshness", "failover"}:  # they measure nothing without a broker
        assert document["skipped"] == [{"name": "all", "reason": "left out by --no-broker"}]
    else:
        assert document["ratios"]
        assert all(len(measure["runs"]) >= 1 for measure in document["measures"])
    sound = [goal for goal in document["goals"] if goal["name"].startswith(("verify", "leaves out of bounds"))]
    assert all(goal["met"] for goal in sound), document


def test_the_load_is_valid_and_the_same_each_time():
    lines = item_lines(200, first=5)

    assert lines == item_lines(200, first=5)
    assert [ITEM_EVENT.validate_json(line).item_id for line in lines] == [item_id(5 + n) for n in range(200)]
    for other in (topical_lines(200, topics=10), crowd_lines(200, first=0)):
        assert len({ITEM_EVENT.validate_json(line).item_id for line in other}) == 200
    engagements = [ENGAGEMENT.validate_json(line) for line in engagement_lines(500, 200)]
    assert {event.item_id for event in engagements} <= {item_id(n) for n in range(200)}


def test_embeddings_lie_in_clusters_and_drift_with_time():
    still, again = embeddings(4_000, clusters=2), embeddings(4_000, clusters=2)
    drifting = embeddings(4_000, clusters=2, drift=1.5)

    assert (still == again).all()
    assert still.shape == (4_000, 3, 64)
    for made in (still, drifting):
        np.testing.assert_allclose(np.linalg.norm(made, axis=2), 1, atol=2e-3)
    for made, moved in ((still, False), (drifting, True)):
        likeness = made[:200, 0] @ made[-200:, 0].T  # of the first items to the last: high within a cluster
        assert bool(likeness.max() < 0.6) == moved


def test_systems_take_turns_there_and_back():
    assert "".join(alternating("abc", 3)) == "abccbaabc"


def test_a_result_compares_medians_and_states_goals():
    result = Result("example", {"items": 1})
    result.add("fast", "/s", 10, 30, 20)
    result.add("slow", "/s", 5)

    assert result.ratio("fast / slow", "fast", "slow") == 4
    result.goal("fast", result.median("fast"), "at least", 25)
    result.skip("the rest", "no time")
    document = result.document()

    assert document["measures"][0] == {"name": "fast", "unit": "/s", "median": 20, "runs": [10, 30, 20]}
    assert document["goals"] == [{"name": "fast", "value": 20, "goal": "at least 25", "met": False}]
    assert document["skipped"] == [{"name": "the rest", "reason": "no time"}]


def test_multi_ann_is_compared_on_a_tiny_load():
    pytest.importorskip("faiss")
    pytest.importorskip("hnswlib")
    small = ["--size", "1500", "--repeats", "1", "--requests", "12", "--in-process", "--json"]
    command = [sys.executable, "-m", "benchmarks.ann", *small]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    recalls = [each["median"] for each in document["measures"] if each["name"].startswith("recall, ours")]
    assert all(0 <= recall <= 1 for recall in recalls)
    assert set(document["details"]["curves"]) == {"1", "2"}


def test_rates_at_a_recall_lie_between_those_of_two_settings():
    pytest.importorskip("faiss")
    from benchmarks.ann import at_recall  # needs the extra

    curve = [(0.5, 400.0), (0.9, 100.0)]
    assert at_recall(curve, 0.5) == pytest.approx(400)
    assert at_recall(curve, 0.7) == pytest.approx(200)
    assert at_recall(curve, 0.2) == 400
    assert at_recall(curve, 0.95) != at_recall(curve, 0.95)


def test_an_advantage_counts_only_settings_that_find_no_less():
    pytest.importorskip("faiss")
    from benchmarks.task_ann import advantage  # needs the extra

    systems = {
        "ours, a @100": {"recall": 0.1, "per_second": [900.0]},
        "ours, b @100": {"recall": 0.3, "per_second": [300.0]},
        "peer, x @100": {"recall": 0.2, "per_second": [100.0]},
        "peer, x @500": {"recall": 0.9, "per_second": [9.0]},
    }
    assert advantage(systems, "peer", 100) == pytest.approx(3)
