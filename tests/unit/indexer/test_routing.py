"""From raw indices to leaves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer import routing
from indexer.routing import nearest_of


@pytest.fixture(autouse=True, params=[1, 7, 1 << 18], ids="at most {} distances at once".format)
def _pairs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_PAIRS", request.param)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(1, 6), max_size=20), seed=st.integers(0, 100), distinct=st.integers(1, 8))
def test_each_row_takes_its_nearest_candidate_the_first_of_equals(counts: list[int], seed: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (len(counts), 3)).astype(np.float32)
    centroids = rng.integers(-2, 3, (distinct, 3)).astype(np.float32)
    candidates = rng.integers(0, distinct, sum(counts))
    found = nearest_of(vectors, centroids, candidates, np.array(counts, np.int64)).tolist()
    start = 0
    for row, count in enumerate(counts):
        mine = candidates[start : start + count].tolist()
        distance = [float(((centroids[leaf] - vectors[row]) ** 2).sum()) for leaf in mine]
        assert found[row] == mine[distance.index(min(distance))]
        start += count
