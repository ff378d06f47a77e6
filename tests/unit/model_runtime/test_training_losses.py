"""The softmax correction, straight-through gradients, balance, and the usage report."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_runtime.training import losses
from model_runtime.training.balance import Balance, start_layer
from model_runtime.training.report import code_report, usage_of


def test_inclusion_probability_is_that_of_at_least_one_draw():
    frequencies = np.array([[0.5, 0.25, 0.0, 0.25], [0.0, 0.5, 0.0, 0.5]])
    log_pi = losses.log_inclusion(frequencies, np.array([2, 1]), 0.1)
    expected = [1 - 0.25 * 0.9, 1 - 0.75**2 * 0.5 * 0.9, 0.1, 1 - 0.75**2 * 0.5 * 0.9]
    assert np.exp(log_pi) == pytest.approx(expected)


def test_inclusion_is_certain_when_all_items_are_drawn_or_one_always_is():
    assert losses.log_inclusion(np.array([[0.5, 0.5]]), np.array([3]), 1.0).tolist() == [0, 0]
    assert losses.log_inclusion(np.array([[1.0, 0.0]]), np.array([3]), 0.0)[0] == 0
    assert np.isfinite(losses.log_inclusion(np.array([[1.0, 0.0]]), np.array([0]), 0.0)).all()


def test_the_corrected_normaliser_estimates_the_full_one():
    """Averaged over batches, exp(loss) of the sampled softmax is that of the softmax over all items."""
    rng = np.random.default_rng(0)
    items, draws, uniform = 60, 30, 6
    columns = torch.from_numpy(rng.standard_normal((items, 8)).astype(np.float32) * 0.5)
    trigger = torch.from_numpy(rng.standard_normal((1, 8)).astype(np.float32))
    frequency = rng.dirichlet(np.full(items, 0.2))
    log_pi = losses.log_inclusion(frequency[None], np.array([draws]), uniform / items)
    positive = 7
    estimates = []
    for _ in range(4_000):
        drawn = rng.choice(items, draws, p=frequency)
        also = rng.choice(items, uniform, replace=False)
        present = np.unique(np.concatenate([drawn, also, [positive]]))
        loss = losses.sampled_softmax(
            trigger,
            columns[present],
            torch.tensor([int(np.searchsorted(present, positive))]),
            torch.from_numpy(log_pi[present]),
            torch.zeros(1, len(present), dtype=torch.bool),
            1.0,
        )
        estimates.append(float(torch.exp(loss)))
    everything = torch.exp(torch.nn.functional.cross_entropy(trigger @ columns.T, torch.tensor([positive])))
    assert np.mean(estimates) == pytest.approx(float(everything), rel=0.05)


def test_blocked_columns_take_no_part():
    columns = torch.eye(3)
    blocked = torch.tensor([[False, True, True]])
    loss = losses.sampled_softmax(torch.ones(1, 3), columns, torch.tensor([0]), torch.zeros(3), blocked, 0.1)
    assert float(loss) == 0


def test_quantised_gradients_reach_codewords_and_encoder_alike():
    vectors = torch.tensor([[0.9, 0.1], [0.1, 0.8]], requires_grad=True)
    codewords = torch.nn.Parameter(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.1], [0.1, -0.2]]]))
    quantised, codes, distances = losses.quantise(vectors, codewords, 2)
    assert codes.tolist() == [[0, 0], [1, 1]]
    assert distances.shape == (2, 2, 2)
    value = losses.straight_through(vectors, quantised)
    assert torch.equal(value, quantised)
    value.sum().backward()
    assert torch.equal(vectors.grad, torch.ones(2, 2))
    assert torch.equal(codewords.grad, torch.ones(2, 2, 2))


def test_inactive_layers_neither_quantise_nor_learn():
    codewords = torch.nn.Parameter(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)))
    quantised, codes, _ = losses.quantise(torch.ones(5, 3), codewords, 1)
    quantised.sum().backward()
    assert codes.shape == (5, 1)
    assert not codewords.grad[1].any()


def test_the_anchor_pulls_codewords_fully_and_members_weakly():
    vectors = torch.zeros(1, 2, requires_grad=True)
    quantised = torch.ones(1, 2, requires_grad=True)
    losses.anchor(vectors, quantised, 0.25).backward()
    assert quantised.grad.tolist() == [[2, 2]]
    assert vectors.grad.tolist() == [[-0.5, -0.5]]


def balance(**changes) -> Balance:
    return Balance(
        (1, 2, 4), **{"start_step": 10, "layer_steps": 5, "decay": 0.0, "allowed": 1.0, "sharpness": 1.0, **changes}
    )


def test_layers_join_one_after_the_other_after_a_delay():
    assert [balance().active_layers(step) for step in (0, 9, 10, 14, 15, 99)] == [0, 0, 1, 1, 2, 2]
    assert balance(start_step=0, layer_steps=0).active_layers(1) == 2


def test_only_over_used_codewords_pay_and_are_pushed_away():
    distances = torch.full((8, 1, 4), 1.0, requires_grad=True)
    even = torch.arange(8)[:, None] % 4
    assert float(balance().penalty(0, even, distances).detach()) == 0
    cost = balance().penalty(0, torch.zeros(8, 1, dtype=torch.int64), distances)
    cost.backward()
    assert float(cost.detach()) > 0
    assert (distances.grad[:, :, 0] < 0).all()  # a greater distance would cost less
    assert (distances.grad[:, :, 1:] > 0).all()


def test_usage_is_averaged_over_steps():
    averaged = balance(decay=0.5)
    averaged.penalty(0, torch.zeros(8, 1, dtype=torch.int64), torch.ones(8, 1, 4))
    assert averaged.usage[0, 0].tolist() == [0.625, 0.125, 0.125, 0.125]
    assert averaged.usage[0, 1].tolist() == [0.25] * 4


def test_a_layer_starts_from_what_earlier_layers_leave_over():
    rng = np.random.default_rng(0)
    words = np.zeros((1, 2, 2, 2), np.float32)
    words[0, 0] = [[1, 0], [0, 1]]
    offsets = np.array([[0.25, 0], [0, -0.25]], np.float32)
    vectors = (words[0, 0][:, None] + offsets).reshape(4, 1, 2)
    started = start_layer(np.tile(vectors, (5, 1, 1)), words, 1, rng)
    assert sorted(started[0].tolist()) == sorted(offsets.tolist())


def test_even_use_has_full_perplexity_and_no_inequality():
    usage = usage_of(np.array([5, 5, 5, 5]))
    assert (usage.places, usage.dead, usage.largest) == (4, 0, 0.25)
    assert usage.perplexity == pytest.approx(4)
    assert usage.gini == pytest.approx(0)


def test_use_of_one_place_is_seen_in_every_figure():
    usage = usage_of(np.array([0, 9, 0, 0]))
    assert (usage.dead, usage.largest, usage.perplexity) == (3, 1, 1)
    assert usage.gini == pytest.approx(0.75)
    assert usage_of(np.zeros(3, np.int64)).dead == 3


def test_collisions_count_items_whose_codes_agree_in_all_facets():
    codes = np.array([[[0, 1], [1, 1]], [[0, 1], [1, 1]], [[0, 1], [0, 0]]], np.int32)
    report = code_report(codes, (codes[..., 0] * 2 + codes[..., 1]).astype(np.uint32), 2)
    assert report.collisions == pytest.approx(2 / 3)
    assert report.facets[0].leaves.dead == 3
    assert report.metrics()["facet1_layer0_dead"] == 0
