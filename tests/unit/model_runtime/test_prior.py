"""The learned prior: exact, monotone where it was taught to be, and part of the artifact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.prior import Prior, PriorShape, freeze, initial_weights, inputs
from model_runtime.training.learning import TrainablePrior
from schemas.errors import ArtifactError

SHAPE = PriorShape((3_600, 86_400), (16,))


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = initial_weights(SHAPE, rng)
    return freeze({name: values + rng.normal(0, 0.3, values.shape) for name, values in made.items()})


def made_up(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.exponential(50, (n, 2)), rng.exponential(1e5, n)


def test_inputs_are_the_log_of_counts_and_age_exact_at_powers_of_two():
    found = inputs(np.array([[0.0, 7.0]]), np.array([60.0 * (2**10 - 1)]))
    assert found.tolist() == [[0, 3 / 8, 10 / 8]]
    counts = np.linspace(0, 1e6, 1_000)[:, None]
    error = inputs(counts, np.zeros(1_000))[:, 0] * 8 - np.log2(1 + counts[:, 0])
    assert np.abs(error).max() < 0.09


def test_an_item_from_the_future_counts_as_new():
    prior = Prior(SHAPE, weights(), 0.15)
    counts, _ = made_up(1)
    assert prior.score(counts, np.array([-5.0])) == prior.score(counts, np.array([0.0]))


@given(st.integers(0, 60), st.integers(0, 2**32))
def test_a_score_does_not_depend_on_its_batch(cut, seed):
    prior = Prior(SHAPE, weights(), 0.15)
    counts, age = made_up(60, seed)
    whole = prior.score(counts, age)
    parts = np.concatenate([prior.score(counts[:cut], age[:cut]), prior.score(counts[cut:], age[cut:])])
    assert whole.dtype == np.float32
    assert parts.tobytes() == whole.tobytes()
    order = np.random.default_rng(seed).permutation(60)
    assert prior.score(counts[order], age[order]).tobytes() == whole[order].tobytes()


def test_the_frozen_prior_computes_what_the_trained_one_does():
    counts, age = made_up(200)
    with torch.no_grad():
        trained = TrainablePrior(weights())(torch.from_numpy(inputs(counts, age).astype(np.float32)))
    assert np.abs(Prior(SHAPE, weights(), 0.15).score(counts, age) - trained.numpy()).max() < 5e-3


def test_before_training_there_is_no_preference():
    counts, age = made_up(10)
    fresh = freeze(initial_weights(SHAPE, np.random.default_rng(0)))
    assert not Prior(SHAPE, fresh, 0.15).score(counts, age).any()


def test_windows_are_found_by_half_life_or_the_missing_one_is_named():
    prior = Prior(SHAPE, weights(), 0.15)
    assert prior.windows((60, 86_400, 3_600)) == (2, 1)
    with pytest.raises(ArtifactError, match="86400 s"):
        prior.windows((3_600,))


def test_widths_beyond_exact_sums_are_refused():
    with pytest.raises(ValueError, match="width 2048"):
        PriorShape((60,), (2048,))
