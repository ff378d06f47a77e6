"""From raw indices to leaves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer import routing
from indexer.routing import nearest_of
from indexer.routing_kernels import hosts


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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parents=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    small=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=8),
    few=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_a_new_raw_index_joins_the_nearest_small_leaf_of_its_parent_or_opens_one(
    parents: list[int], small: list[tuple[int, int]], few: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    room = 6
    parents, small = sorted(parents), sorted(small)
    items = rng.integers(1, 4, len(parents))
    points = rng.standard_normal((len(parents), 3)).astype(np.float32)
    centroids = rng.standard_normal((20, 3)).astype(np.float32)
    ids = rng.permutation(20)[: len(small)]
    held = np.array([count for _, count in small], np.int64)
    of_small = np.array([parent for parent, _ in small], np.int64)
    found = hosts(np.array(parents), items, points, ids, held, of_small, centroids, 20, room, few)

    leaves = {int(leaf): [parent, count, centroids[leaf]] for leaf, (parent, count) in zip(ids, small, strict=True)}
    for row, parent in enumerate(parents):
        taking = [leaf for leaf, (of, count, _) in leaves.items() if of == parent and count < room]
        if len(taking) < few:
            taking = [20 + sum(leaf >= 20 for leaf in leaves)]
            leaves[taking[0]] = [parent, 0, points[row]]
        nearest = min(taking, key=lambda leaf: float(((leaves[leaf][2] - points[row]) ** 2).sum()))
        assert found[row] == nearest
        leaves[nearest][1] += int(items[row])
    assert held.tolist() == [count for _, count in small]
