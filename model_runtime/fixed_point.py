"""Arithmetic whose results do not depend on the order of additions: whole numbers carried in float64.

A float matrix product adds its terms in an order that the library picks by shape, thread count, position in
the matrix and processor, and each order rounds differently. An item encoded alone could then differ from the
same item in a batch in the last bit, fall on the other side of a cell's border, and be filed in another leaf
after a replay. Here every operand is a multiple of a power of two with so few bits that all sums stay below
2^53: each is exact, so every order gives the same bits, on every machine. What remains (one division, one
square root, one rounding per element) is correctly rounded by IEEE 754. Nothing here may use an operation
that isn't: no exp, tanh, erf, pow, fused multiply-add of inexact terms.

Bits, with K the length of a sum (at most 2^10, for dense vectors 2^12):

    unit rows               21 + 21 + log2 K                <= 52
    inputs @ weights        20 (dense 20, hidden 21) + 19 + log2 K  <= 51
    residual . codeword     in units of 2^-40; bounded by lengths, see model_runtime.codebook.too_long
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch

UNIT_BITS: Final = 21
INPUT_BITS: Final = 15  # after the root mean square norm values are at most sqrt(K) <= 2^5
HIDDEN_BITS: Final = 12
HIDDEN_LIMIT: Final = 2.0**9
WEIGHT_BITS: Final = 16
WEIGHT_LIMIT: Final = 2.0**3
BIAS_LIMIT: Final = 2.0**10
TABLE_BITS: Final = 12  # float32 sums of table rows are exact below 2^12: any bag of a thousand tokens
TABLE_LIMIT: Final = 2.0**2
CODEWORD_BITS: Final = 16
CODEWORD_LIMIT: Final = 2.0
MAX_SUM: Final = 1 << 10


def snap(values: npt.NDArray[np.floating], bits: int, limit: float) -> npt.NDArray[np.float32]:
    """Nearest multiples of 2^-bits, strictly inside +-limit; any shape, float32, never a negative zero."""
    step = 2.0**-bits
    snapped = np.rint(np.asarray(values, np.float64) / step) * step
    inside: npt.NDArray[np.float32] = np.clip(snapped, -limit + step, limit - step).astype(np.float32)
    return inside + np.float32(0)


def off_grid(values: npt.NDArray[np.float32], bits: int, limit: float) -> str | None:
    """What keeps ``values`` from being grid values, as words for a message; None when all are."""
    if not np.isfinite(values).all():
        return "holds NaN or infinity"
    if np.abs(values).max(initial=0) >= limit:
        return f"holds a value of {limit:g} or more"
    scaled = values.astype(np.float64) * 2.0**bits
    if not np.array_equal(scaled, np.rint(scaled)):
        return f"holds a value that is no multiple of 2^-{bits}"
    return None


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of Euclidean length 1, to about 2^-21; a zero row stays zero.

    Args:
        rows: (..., k) float64, k <= 2^10; overwritten.
    """
    peak = rows.abs().amax(-1, keepdim=True)
    mantissa, _ = torch.frexp(peak)
    scale = mantissa.div_(peak).nan_to_num_(nan=0.0)  # 2^-exponent exactly; ldexp goes through an inexact pow
    rows.mul_(scale.mul_(2.0**UNIT_BITS)).round_()
    length = (rows * rows).sum(-1, keepdim=True).sqrt_()
    return rows.div_(length.clamp_min_(1.0))


def whole(values: npt.NDArray[np.float32], bits: int, device: torch.device) -> torch.Tensor:
    """Grid values as whole numbers in float64 on a device."""
    return torch.from_numpy(values.astype(np.float64) * 2.0**bits).to(device)
