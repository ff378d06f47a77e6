"""Arithmetic on the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_runtime import fixed_point as fx


def test_snapping_gives_grid_values_inside_the_limit_and_no_negative_zero():
    snapped = fx.snap(np.array([0.1, -9.0, 9.0, -1e-9]), 4, 2.0)
    assert snapped.tolist() == [0.125, -1.9375, 1.9375, 0.0]
    assert not np.signbit(snapped[3])
    assert fx.off_grid(snapped, 4, 2.0) is None


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN"), (np.inf, "NaN"), (2.0, "2 or more"), (0.1, "multiple")]
)
def test_values_off_the_grid_are_named(value, message):
    assert message in (fx.off_grid(np.array([value], np.float32), 4, 2.0) or "")


def test_rows_get_unit_length_at_any_scale_and_zero_rows_stay_zero():
    rows = torch.tensor([[3.0, 4.0], [3e-200, 4e-200], [3e200, 4e200], [0.0, 0.0]], dtype=torch.float64)
    unit = fx.unit_rows(rows)
    expected = torch.tensor([[0.6, 0.8]] * 3 + [[0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(unit, expected, atol=2**-19)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 64, 1024]))
def test_unit_rows_do_not_depend_on_the_order_of_components(seed, size):
    rng = np.random.default_rng(seed)
    row = rng.standard_normal(size)
    order = rng.permutation(size)
    straight = fx.unit_rows(torch.from_numpy(row[None].copy()))[0].numpy()
    shuffled = fx.unit_rows(torch.from_numpy(row[None, order].copy()))[0].numpy()
    assert np.array_equal(straight[order], shuffled)


def test_the_longest_sums_of_the_largest_operands_stay_exact():
    largest_input = int(fx.MAX_SUM**0.5) << fx.INPUT_BITS
    largest_hidden = int(fx.HIDDEN_LIMIT) << fx.HIDDEN_BITS
    largest_weight = int(fx.WEIGHT_LIMIT) << fx.WEIGHT_BITS
    for carried, bits in ((largest_input, fx.INPUT_BITS), (largest_hidden, fx.HIDDEN_BITS)):
        bias = int(fx.BIAS_LIMIT) << (fx.WEIGHT_BITS + bits)
        assert carried * largest_weight * fx.MAX_SUM + bias < 1 << 53
    assert (1 << 2 * fx.UNIT_BITS) * fx.MAX_SUM < 1 << 53
    dense = 1 << 20
    assert dense * largest_weight * 4096 < 1 << 53
