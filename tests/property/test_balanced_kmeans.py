"""Balanced k-means: sizes between floor and cap, whatever the points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.rebalance.kmeans import balanced_kmeans
from indexer.rebalance.split import split_shape


@st.composite
def problems(draw: Any) -> tuple[np.ndarray, int, int, int]:
    k = draw(st.integers(1, 8))
    floor = draw(st.integers(0, 6))
    cap = draw(st.integers(max(1, floor), floor + 8))
    n = draw(st.integers(max(1, k * floor), k * cap))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["spread", "few distinct", "identical", "one far away", "huge"]))
    x = rng.standard_normal((n, 3)).astype(np.float32)
    if kind == "few distinct":
        x = x[rng.integers(0, max(1, n // 4), n)]
    elif kind == "identical":
        x[:] = x[0]
    elif kind == "one far away":
        x[0] = 1e4
    elif kind == "huge":
        x *= 1e15
    return x, k, floor, cap


@given(problem=problems(), seed=st.integers(0, 2**40))
def test_every_cluster_holds_between_floor_and_cap_points(problem: tuple[np.ndarray, int, int, int], seed: int) -> None:
    x, k, floor, cap = problem
    labels, centroids = balanced_kmeans(x, k, floor, cap, seed)
    sizes = np.bincount(labels, minlength=k)
    assert len(sizes) == k
    assert len(labels) == len(x)
    assert floor <= sizes.min()
    assert sizes.max() <= cap
    assert centroids.shape == (k, x.shape[1])
    assert np.isfinite(centroids).all()
    for cluster in np.flatnonzero(sizes).tolist():
        np.testing.assert_allclose(centroids[cluster], x[labels == cluster].mean(0, np.float64), rtol=1e-4, atol=1e-5)


@given(problem=problems(), seed=st.integers(0, 2**40))
def test_the_same_seed_gives_the_same_clusters(problem: tuple[np.ndarray, int, int, int], seed: int) -> None:
    first, again = balanced_kmeans(*problem, seed), balanced_kmeans(*problem, seed)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()


@given(
    low=st.integers(1, 500),
    ratio=st.integers(2, 40),
    over=st.floats(1.0001, 50),
    fill=st.floats(0.11, 0.99),
)
def test_children_of_a_leaf_above_the_bound_fit_between_the_bounds(
    low: int, ratio: int, over: float, fill: float
) -> None:
    high = low * ratio
    size = max(high + 1, int(high * over))
    k, floor, cap = split_shape(size, (low, high), fill)
    assert k >= 2
    assert low <= floor <= cap <= high
    assert k * floor <= size <= k * cap


def test_points_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="5 points do not fit 2 clusters of 1 to 2"):
        balanced_kmeans(np.zeros((5, 2), np.float32), 2, 1, 2, 0)


def test_clear_clusters_are_found() -> None:
    centres = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    x = np.repeat(centres, 10, axis=0) + np.random.default_rng(1).standard_normal((30, 2)).astype(np.float32) * 0.1
    labels, centroids = balanced_kmeans(x, 3, 1, 20, 0)
    assert {tuple(np.rint(centroid).tolist()) for centroid in centroids} == {(0, 0), (10, 0), (0, 10)}
    assert all(len(set(labels[start : start + 10].tolist())) == 1 for start in (0, 10, 20))
