"""The steps of the compiled kernels against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.retrieval.best_kernels import best, floor_of, index_of, key_of, order_equals, ranked, score_of, sort
from indexer.retrieval.prior_kernels import log1p
from indexer.retrieval.scan_kernels import similarities

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
SCORES = st.lists(FINITE | st.sampled_from([0.0, 0.5, 0.25]), min_size=1, max_size=300).map(
    lambda values: np.array(values, np.float32) + np.float32(0)  # of -0 and 0 neither is greater
)


@given(scores=SCORES, need=st.integers(1, 300), spare=st.integers(0, 40))
def test_a_floor_is_reached_by_as_many_as_are_needed(scores: np.ndarray, need: int, spare: int) -> None:
    floor = floor_of(scores, need, spare)
    assert (scores >= floor).sum() >= min(need, len(scores))


@given(scores=SCORES, need=st.integers(1, 300), seed=st.integers(0, 9))
def test_the_best_are_those_that_a_sort_puts_first(scores: np.ndarray, need: int, seed: int) -> None:
    n = len(scores)
    ordinal = np.random.default_rng(seed).permutation(n).astype(np.uint32)
    at, picked = np.arange(n, dtype=np.uint32), np.empty(n + 1, np.int32)
    count, limit = best(scores, 0, n, need, ordinal, at, np.empty(n, np.uint64), picked)
    kept = [i for i in picked[:count].tolist() if ranked(scores[i], ordinal[i]) >= limit]
    wanted = sorted(np.lexsort((ordinal, -scores))[:need].tolist())
    assert sorted(kept) == wanted
    assert [i for i in range(n) if ranked(scores[i], ordinal[i]) >= limit] == wanted  # none of the others does


@given(scores=SCORES, seed=st.integers(0, 9))
def test_keys_come_out_by_score_then_ordinal(scores: np.ndarray, seed: int) -> None:
    n = len(scores)
    ordinal = np.random.default_rng(seed).permutation(n).astype(np.uint32)
    keys = np.array([key_of(score, 2 * i) for i, score in enumerate(scores)], np.uint64)
    sort(keys, np.empty_like(keys), n)
    order_equals(keys, n, ordinal)
    assert [index_of(key) for key in keys] == np.lexsort((ordinal, -scores)).tolist()
    assert [score_of(key) for key in keys] == np.sort(scores)[::-1].tolist()


@given(x=st.floats(0, 2.0**120, width=32))
def test_the_logarithm_is_near(x: float) -> None:
    expected = np.log1p(x)
    assert abs(float(log1p(np.float32(x))) - expected) <= 4e-7 * max(1.0, expected)


@pytest.mark.parametrize("dim", [1, 7, 16, 64, 80])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_member_is_as_similar_wherever_it_stands(dim: int, count: int) -> None:
    rng = np.random.default_rng(dim)
    vectors = rng.standard_normal((20, dim)).astype(np.float16)
    query = rng.standard_normal(dim).astype(np.float32)
    at = rng.integers(0, 20, count).astype(np.uint32)
    out = np.full(count + 3, -np.inf, np.float32)
    similarities(vectors.view(np.uint16), at, 0, count, query, out, 0, False, (0, 20))
    np.testing.assert_allclose(out[:count], vectors[at].astype(np.float32) @ query, rtol=1e-4, atol=1e-5)
    alone = np.empty(4, np.float32)
    for i in range(count):
        similarities(vectors.view(np.uint16), at, i, 1, query, alone, 0, True, (0, 0))
        assert alone[0] == out[i]
