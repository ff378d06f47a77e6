"""The encoder: hashed bags -> pooled row -> MLP -> F unit vectors of length d. Once to train, once frozen.

    p = sum_g gain[g] / sqrt(tokens_g) * sum of the table rows of bag g  (+ id row)  (+ dense vector @ projection)
    h = p / rms(p);  h = relu(h W + b) for each hidden layer
    e = (h W_out + b_out) as (F, d), each row brought to length 1

:class:`Encoder` is the trainable float32 module, :class:`FrozenEncoder` the same function of exported weights
in exact arithmetic (:mod:`model_runtime.fixed_point`). Identifiers have rows of their own, found by their
64-bit hash and kept for items that training saw: an item that it never saw has none, and is its content.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from model_runtime import fixed_point as fx
from model_runtime.features import FeatureBatch, group_names

if TYPE_CHECKING:
    from schemas.artifact import FeatureSpec

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
U64Array = npt.NDArray[np.uint64]

_POOLED: Final = ("table", "ids", "projection")
_TOKEN_SPREAD: Final = 0.02
_CHUNK: Final = 512  # rows of the MLP at a time: its activations stay in cache


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Everything that fixes the shapes of an encoder's weights; ``ids`` is how many identifiers have rows."""

    features: FeatureSpec
    facets: int
    dim: int
    token_dim: int
    hidden: tuple[int, ...]
    ids: int = 0

    def __post_init__(self) -> None:
        for width in (self.token_dim, self.dim, *self.hidden):
            if not 1 <= width <= fx.MAX_SUM:
                raise ValueError(f"encoder width {width} is outside 1 to {fx.MAX_SUM}, where sums stay exact")

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each weight."""
        widths = [self.token_dim, *self.hidden, self.facets * self.dim]
        shapes: dict[str, tuple[int, ...]] = {
            "table": (self.features.buckets, self.token_dim),
            "gains": (len(group_names(self.features)),),
        }
        if self.ids:
            shapes["ids"] = (self.ids, self.token_dim)
        if self.features.dense_dim:
            shapes["projection"] = (self.features.dense_dim, self.token_dim)
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            shapes[f"layer{layer}.weight"] = (inputs, outputs)
            shapes[f"layer{layer}.bias"] = (outputs,)
        return shapes


def weight_grid(name: str) -> tuple[int, float]:
    """Bits after the point and limit of a weight's values in a frozen encoder."""
    if name in {"table", "ids", "gains"}:
        return fx.TABLE_BITS, fx.TABLE_LIMIT
    if name.endswith("bias"):
        return fx.WEIGHT_BITS, fx.BIAS_LIMIT
    return fx.WEIGHT_BITS, fx.WEIGHT_LIMIT


def initial_weights(shape: EncoderShape, rng: np.random.Generator) -> dict[str, Float32Array]:
    """Weights to begin with: token rows small, so that one that training never saw adds next to nothing; ids zero."""
    weights: dict[str, Float32Array] = {}
    for name, size in shape.weights().items():
        if name == "gains":
            weights[name] = np.ones(size, np.float32)
        elif name == "ids" or name.endswith("bias"):
            weights[name] = np.zeros(size, np.float32)
        else:
            spread = _TOKEN_SPREAD if name == "table" else size[0] ** -0.5
            weights[name] = rng.standard_normal(size, np.float32) * np.float32(spread)
    return weights


def freeze(weights: dict[str, Float32Array]) -> tuple[dict[str, Float32Array], int]:
    """Weights on the grid of the frozen encoder, and the exponent of what pools were scaled by.

    Table, ids and projection are first scaled by one power of two so that they use the range of their grids; the
    norm after pooling takes the factor out again.
    """
    scaled = dict(weights)
    pooled = [name for name in _POOLED if name in weights]
    fill = max(float(np.abs(weights[name]).max(initial=1e-9)) / weight_grid(name)[1] for name in pooled)
    _, exponent = np.frexp(fill)
    for name in pooled:
        scaled[name] = weights[name] * np.float32(2.0 ** -int(exponent))
    return {name: fx.snap(values, *weight_grid(name)) for name, values in scaled.items()}, -int(exponent)


def thaw(weights: dict[str, Float32Array], exponent: int) -> dict[str, Float32Array]:
    """What :func:`freeze` was given, but for rounding: to go on training."""
    factor = np.float32(2.0**-exponent)
    return {name: values * factor if name in _POOLED else values.copy() for name, values in weights.items()}


class Encoder(torch.nn.Module):
    """The trainable encoder.

    Args:
        shape: of the weights.
        weights: to begin with. Of table and ids any rows will do; tokens and id rows of batches then number these,
            from 0. A table of 65,536 rows costs as much per step whether used or not.
    """

    def __init__(self, shape: EncoderShape, weights: dict[str, Float32Array]) -> None:
        super().__init__()
        self.shape = shape
        self.values = torch.nn.ParameterDict(
            {_parameter(name): torch.nn.Parameter(torch.tensor(weights[name])) for name in weights}
        )

    def forward(self, batch: FeatureBatch, id_rows: Int64Array | None = None) -> torch.Tensor:
        """Facet vectors (n, F, d) float32 of n items; ``id_rows`` is (n,), -1 for items without one."""
        values = self.values
        device = values["gains"].device
        groups, n = batch.scale.shape
        bags = functional.embedding_bag(
            torch.from_numpy(batch.tokens.astype(np.int64)).to(device),
            values["table"],
            torch.from_numpy(batch.offsets).to(device),
            mode="sum",
            include_last_offset=True,
        ).view(groups, n, -1)
        weight = torch.from_numpy(batch.scale).to(device) * values["gains"][:, None]
        pooled = (bags * weight[:, :, None]).sum(0)
        if "ids" in values and id_rows is not None:
            known = np.flatnonzero(id_rows >= 0)
            rows = values["ids"].index_select(0, torch.from_numpy(id_rows[known]).to(device))
            pooled = pooled.index_add(0, torch.from_numpy(known).to(device), rows)
        if "projection" in values:
            pooled = pooled + torch.from_numpy(batch.dense.astype(np.float32)).to(device) @ values["projection"]
        hidden = functional.normalize(pooled, dim=-1, eps=1e-9) * self.shape.token_dim**0.5
        last = len(self.shape.hidden)
        for layer in range(last + 1):
            hidden = hidden @ values[f"layer{layer}_weight"] + values[f"layer{layer}_bias"]
            if layer < last:
                hidden = torch.relu(hidden)
        return functional.normalize(hidden.view(n, self.shape.facets, self.shape.dim), dim=-1)

    def of(self, name: str) -> torch.nn.Parameter:
        """A parameter by the name of its weight."""
        parameter: torch.nn.Parameter = self.values[_parameter(name)]
        return parameter


def _parameter(name: str) -> str:
    return name.replace(".", "_")  # torch reserves the dot for nesting


def find_ids(keys: U64Array, ids: U64Array) -> Int64Array:
    """(n,) row of each hashed identifier in ascending ``keys`` (k,), -1 where it is not among them."""
    if not len(keys):
        return np.full(len(ids), -1, np.int64)
    at = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
    return np.where(keys[at] == ids, at, -1)


class FrozenEncoder:
    """Exported weights on a device; the same content gives the same bits in every batch.

    Args:
        shape: what the weights' shapes follow from.
        weights: grid values by name, float32 (:meth:`EncoderShape.weights`, :func:`weight_grid`).
        device: where to compute.
        id_keys: (ids,) uint64, ascending: the hash of each id row's item.
    """

    def __init__(
        self,
        shape: EncoderShape,
        weights: dict[str, Float32Array],
        device: torch.device,
        id_keys: U64Array | None = None,
    ) -> None:
        self._shape = shape
        self._id_keys = np.zeros(0, np.uint64) if id_keys is None else id_keys
        self._ids = torch.from_numpy(weights["ids"]).to(device) if shape.ids else None
        self._device = device
        self._table = torch.from_numpy(weights["table"]).to(device)
        self._gains = weights["gains"]
        self._projection = fx.whole(weights["projection"], fx.WEIGHT_BITS, device) if shape.features.dense_dim else None
        self._layers = []
        for layer in range(len(shape.hidden) + 1):
            carried = fx.HIDDEN_BITS if layer else fx.INPUT_BITS
            weight = fx.whole(weights[f"layer{layer}.weight"], fx.WEIGHT_BITS, device)
            bias = fx.whole(weights[f"layer{layer}.bias"], fx.WEIGHT_BITS + carried, device)
            self._layers.append((weight, bias, 2.0 ** (fx.HIDDEN_BITS - fx.WEIGHT_BITS - carried)))

    @torch.inference_mode()
    def encode(self, batch: FeatureBatch) -> npt.NDArray[np.float16]:
        """Facet vectors (n, F, d) float16 at unit length."""
        pooled = self._pool(batch)
        vectors = np.empty((len(batch), self._shape.facets, self._shape.dim), np.float16)
        for start in range(0, len(batch), _CHUNK):
            part = pooled[start : start + _CHUNK].to(torch.float64)
            if self._projection is not None:
                dense = torch.from_numpy(batch.dense[start : start + _CHUNK] * 2.0**20).to(self._device)
                part += (dense @ self._projection).mul_(2.0 ** (-20 - fx.WEIGHT_BITS))
            vectors[start : start + _CHUNK] = self._transform(part).to(torch.float16).cpu().numpy()
        return vectors

    def _pool(self, batch: FeatureBatch) -> torch.Tensor:
        """Weighted bags added group by group, always in the same order: (n, token_dim) float32."""
        groups, n = batch.scale.shape
        pooled = torch.zeros(n, self._shape.token_dim, device=self._device)
        weights = torch.from_numpy(batch.scale * self._gains[:, None]).to(self._device)
        for group in range(groups):
            offsets = batch.offsets[group * n : (group + 1) * n + 1]
            first, last = int(offsets[0]), int(offsets[-1])
            if first == last:
                continue  # adding the zero rows of an absent group would change no bit
            bags = functional.embedding_bag(
                torch.from_numpy(batch.tokens[first:last]).to(self._device),
                self._table,
                torch.from_numpy((offsets - first).astype(np.int32)).to(self._device),
                mode="sum",
                include_last_offset=True,
            )
            pooled += bags.mul_(weights[group, :, None])
        if self._ids is not None:
            rows = find_ids(self._id_keys, batch.ids)
            known = np.flatnonzero(rows >= 0)
            added = self._ids.index_select(0, torch.from_numpy(rows[known]).to(self._device))
            pooled.index_add_(0, torch.from_numpy(known).to(self._device), added)  # distinct rows: no order of adding
        return pooled

    def _transform(self, rows: torch.Tensor) -> torch.Tensor:
        """Norm, MLP and facet norms: (n, F, d) float64 for (n, token_dim) float64."""
        rows = fx.unit_rows(rows).mul_(self._shape.token_dim**0.5 * 2.0**fx.INPUT_BITS).round_()
        for layer, (weight, bias, rescale) in enumerate(self._layers):
            rows = torch.addmm(bias, rows, weight)
            if layer + 1 < len(self._layers):
                rows = rows.mul_(rescale).round_().clamp_(0, fx.HIDDEN_LIMIT * 2.0**fx.HIDDEN_BITS)
        return fx.unit_rows(rows.view(len(rows), self._shape.facets, self._shape.dim))
