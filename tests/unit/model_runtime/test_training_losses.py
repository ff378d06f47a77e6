"""The softmax correction, straight-through gradients, balance, and the usage report."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_runtime.training import losses
from model_runtime.training.balance import active_layers, over_use, revive, start_layer
from model_runtime.training.report import code_report, similarity_by_leaf, usage_of
from schemas.training import OverUseConfig

NEVER = -1e9


def softmax_loss(scores, own, positive=0, own_column=-1, weight=1.0):
    scores = torch.as_tensor(scores, dtype=torch.float32).view(1, 1, -1)
    own = torch.as_tensor(own, dtype=torch.float32).view(1, 1)
    columns = torch.tensor([positive]), torch.tensor([[own_column]])
    return losses.sampled_softmax(scores, own, *columns, torch.tensor([[weight]]))


def test_the_corrected_normaliser_estimates_the_full_one():
    """Averaged over batches, exp(loss) of the sampled softmax is that of the softmax over all items."""
    rng = np.random.default_rng(0)
    items, head, drawn = 60, 10, 12
    scores = rng.standard_normal(items)
    for positive in (3, 40):
        estimates = []
        for _ in range(4_000):
            sampled = head + rng.choice(items - head, drawn, replace=False)
            offset = np.full(items, NEVER)
            offset[:head], offset[sampled] = 0, np.log((items - head) / drawn)
            estimates.append(float(torch.exp(softmax_loss(scores + offset, scores[positive], positive))))
        everything = torch.nn.functional.cross_entropy(torch.from_numpy(scores)[None], torch.tensor([positive]))
        assert np.mean(estimates) == pytest.approx(float(torch.exp(everything)), rel=0.05)


def test_with_every_item_a_column_it_is_the_softmax_itself():
    scores = torch.tensor([0.5, -1.0, 2.0, 0.0])
    expected = torch.nn.functional.cross_entropy(scores[None], torch.tensor([2]))
    assert float(softmax_loss(scores, scores[2], 2)) == pytest.approx(float(expected))


def test_the_trigger_and_what_is_no_column_take_no_part():
    assert float(softmax_loss([0.0, 5.0, NEVER], 0.0, 0, own_column=1)) == 0


def test_a_row_without_columns_has_no_gradient_and_no_nan():
    scores = torch.full((1, 1, 3), NEVER, requires_grad=True)
    none = torch.tensor([0]), torch.tensor([[-1]]), torch.ones(1, 1)
    loss = losses.sampled_softmax(scores, torch.zeros(1, 1), *none)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(scores.grad, torch.zeros(1, 1, 3))


def test_a_popular_item_is_not_pushed_away_for_being_popular():
    """At the true log-odds the expected gradient is zero: the sign trap of a subtracted log q would show here."""
    rng = np.random.default_rng(1)
    share = np.array([0.6, 0.2, 0.1, 0.05, 0.03, 0.02])
    scores = torch.tensor(np.log(share), dtype=torch.float32, requires_grad=True)
    positives = rng.choice(6, 6_000, p=share)
    for positive in positives:
        offset = torch.full((6,), NEVER)
        offset[0] = 0
        offset[1 + rng.choice(5, 2, replace=False)] = float(np.log(5 / 2))
        (softmax_loss(scores + offset, scores[positive], int(positive)) / len(positives)).backward()
    assert np.abs(scores.grad.numpy()).max() < 0.04


def test_the_more_similar_trigger_takes_more_of_a_pair():
    similarity = torch.tensor([[0.9, 0.1, 0.9]], requires_grad=True)
    drawn = torch.tensor([[0.5, 0.5, 0.0]])
    soft = losses.soft_weights(similarity, drawn, 0.2)
    assert not soft.requires_grad
    assert soft.sum().item() == pytest.approx(1)
    assert soft[0, 0] > 10 * soft[0, 1]
    assert soft[0, 2] == 0
    assert losses.soft_weights(similarity, drawn, float("inf")).tolist() == [[0.5, 0.5, 0.0]]


def nearest(_, distances):
    return distances.argmin(-1)


def test_quantised_gradients_reach_codewords_and_encoder_alike():
    vectors = torch.tensor([[0.9, 0.1], [0.1, 0.8]], requires_grad=True)
    codewords = torch.nn.Parameter(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.1], [0.1, -0.2]]]))
    quantised, codes, distances = losses.quantise(vectors, codewords, 2, nearest)
    assert codes.tolist() == [[0, 0], [1, 1]]
    assert distances.shape == (2, 2, 2)
    value = losses.straight_through(vectors, quantised)
    assert torch.equal(value, quantised)
    value.sum().backward()
    assert torch.equal(vectors.grad, torch.ones(2, 2))
    assert torch.equal(codewords.grad, torch.ones(2, 2, 2))


def test_the_encoder_may_take_a_share_of_the_quantised_gradient():
    vectors, quantised = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    value = losses.straight_through(vectors, quantised, 0.25)
    value.sum().backward()
    assert torch.equal(value.detach(), torch.ones(1, 2))
    assert vectors.grad.tolist() == [[0.25, 0.25]]
    assert quantised.grad.tolist() == [[1, 1]]


def test_inactive_layers_neither_quantise_nor_learn():
    codewords = torch.nn.Parameter(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)))
    quantised, codes, _ = losses.quantise(torch.ones(5, 3), codewords, 1, nearest)
    quantised.sum().backward()
    assert codes.shape == (5, 1)
    assert not codewords.grad[1].any()


def test_the_anchor_pulls_codewords_fully_and_members_weakly():
    vectors = torch.zeros(1, 2, requires_grad=True)
    quantised = torch.ones(1, 2, requires_grad=True)
    losses.anchor(vectors, quantised, 0.25).backward()
    assert quantised.grad.tolist() == [[2, 2]]
    assert vectors.grad.tolist() == [[-0.5, -0.5]]


def means(kind, codewords=None, **changes):
    config = OverUseConfig(**{"kind": kind, "decay": 0.5, "allowed": 1.0, "weight": 1.0, **changes})
    return over_use(config, torch.full((1, 2, 4), 0.25), codewords)


def test_layers_join_one_after_the_other_after_a_delay():
    assert [active_layers(step, 2, 10, 5) for step in (0, 9, 10, 14, 15, 99)] == [0, 0, 1, 1, 2, 2]
    assert active_layers(1, 2, 0, 0) == 2


def test_usage_is_averaged_over_steps():
    counted = means("none")
    counted.used(0, torch.zeros(8, 1, dtype=torch.int64), torch.ones(8, 3), torch.ones(8))
    assert counted.usage[0, 0].tolist() == [0.625, 0.125, 0.125, 0.125]
    assert counted.usage[0, 1].tolist() == [0.25] * 4


def test_only_over_used_codewords_pay_and_are_pushed_away():
    distances = torch.full((8, 1, 4), 1.0, requires_grad=True)
    paying = means("penalty")
    assert float(paying.penalty(0, distances).detach()) == 0
    paying.used(0, torch.zeros(8, 1, dtype=torch.int64), torch.ones(8, 3), torch.ones(8))
    cost = paying.penalty(0, distances)
    cost.backward()
    assert float(cost.detach()) > 0
    assert (distances.grad[:, :, 0] < 0).all()  # a greater distance would cost less
    assert (distances.grad[:, :, 1:] > 0).all()


@pytest.mark.parametrize("kind", ["disturbance", "biased", "moving_average"])
def test_an_under_used_codeword_wins_what_is_almost_its_own(kind):
    choosing = means(kind, torch.zeros(1, 2, 4, 3))
    choosing.usage[0, 0] = torch.tensor([0.85, 0.05, 0.05, 0.05])
    distances = torch.tensor([[1.0, 1.05, 9.0, 9.0], [0.5, 20.0, 20.0, 20.0]])
    assert means("none").choose(0, 0, distances).tolist() == [0, 0]
    assert choosing.choose(0, 0, distances).tolist() == [1, 0]


def test_moving_averages_follow_their_members_and_rare_ones_more():
    words = torch.zeros(1, 2, 4, 2)
    moving = means("moving_average", words)
    assert not moving.gradient
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    codes = torch.zeros(2, 1, dtype=torch.int64)
    moving.used(0, codes, vectors, torch.tensor([1.0, 3.0]))
    # Mass before 0.25, halved; this step's members share the other half of the mass, 1 : 3.
    assert words[0, 0, 0].tolist() == pytest.approx([0.125 / 0.625, 0.375 / 0.625])
    assert not words[0, 0, 1:].any()
    assert not words[0, 1].any()


def test_a_layer_starts_from_what_earlier_layers_leave_over():
    rng = np.random.default_rng(0)
    words = np.zeros((1, 2, 2, 2), np.float32)
    words[0, 0] = [[1, 0], [0, 1]]
    offsets = np.array([[0.25, 0], [0, -0.25]], np.float32)
    vectors = (words[0, 0][:, None] + offsets).reshape(4, 1, 2)
    started = start_layer(np.tile(vectors, (5, 1, 1)), words, 1, rng)
    assert sorted(started[0].tolist()) == sorted(offsets.tolist())


def test_codewords_that_nothing_chooses_move_to_where_the_items_are():
    rng = np.random.default_rng(0)
    vectors = (np.repeat([[1.0, 0.0], [0.0, 1.0]], [90, 10], axis=0) + rng.normal(0, 0.1, (100, 2)))[:, None]
    words = np.zeros((1, 2, 4, 2), np.float32)
    words[0, 0] = [[1, 0], [0, 1], [-1, -1], [-1, 0]]
    words[0, 1, 1:] = 1.5  # everything chooses the first
    moved = revive(vectors.astype(np.float32), words, 0.05, rng)
    assert np.array_equal(moved[0, 0, :2], words[0, 0, :2])
    residuals = vectors[:, 0]
    for layer in range(2):
        codes = ((residuals[:, None] - moved[0, layer]) ** 2).sum(-1).argmin(1)
        assert len(np.unique(codes)) == 4
        residuals = residuals - moved[0, layer, codes]
    assert np.array_equal(revive(vectors.astype(np.float32), moved, 0.0, rng), moved)


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
    vectors = np.eye(3, dtype=np.float16)[[0, 0, 1]][:, None].repeat(2, 1)
    report = code_report(codes, (codes[..., 0] * 2 + codes[..., 1]).astype(np.uint32), vectors, 2)
    assert report.collisions == pytest.approx(2 / 3)
    assert report.facets[0].leaves.dead == 3
    assert report.metrics()["facet1_layer0_dead"] == 0
    assert (report.facets[1].within, report.facets[1].between) == (1, 0)


def test_similarity_is_that_of_pairs_in_one_leaf_and_across_leaves():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((12, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    leaf = rng.integers(0, 3, 12)
    cosine, same = vectors @ vectors.T, leaf[:, None] == leaf
    apart = ~np.eye(12, dtype=bool)
    assert similarity_by_leaf(vectors, leaf) == pytest.approx((cosine[same & apart].mean(), cosine[~same].mean()))
    assert np.isnan(similarity_by_leaf(vectors, np.arange(12))[0])
    assert np.isnan(similarity_by_leaf(vectors, np.zeros(12, int))[1])
