"""One stretch of optimisation: what a span of the log needs of a state, as torch parameters, and steps on them.

    L = sum_f w_f (L_MF + L_QMF + anchor + over-use)

L_MF scores candidates by their embeddings, L_QMF by their quantised embeddings against the same un-quantised triggers,
both with the prior g added. Only rows of the tables that the span's items use take part; :meth:`Learning.put_back`
writes them and Adam's moments where they came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from model_runtime.encoder import Encoder
from model_runtime.features import FeatureBatch, extract
from model_runtime.fixed_point import CODEWORD_BITS
from model_runtime.training import losses
from model_runtime.training.balance import over_use, revive, start_layer
from model_runtime.training.batches import Batch, BatchSource, FacetBatch
from model_runtime.training.state import below, encoder_shape
from schemas.errors import UsageError

if TYPE_CHECKING:
    from model_runtime.training.data import Int64Array, TrainingLog
    from model_runtime.training.state import Float32Array, TrainingState
    from schemas.training import TrainingConfig

_CHUNK: Final = 2_048
_START_SAMPLE: Final = 32_768  # items that a layer's k-means looks at


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of one step."""

    encoder: float
    codewords: float
    prior: float


class Learning:
    """Parameters for one span of a log.

    Args:
        state: to begin from; changed by :meth:`put_back`, its generator by every draw.
        log: items and engagements; what is at or after ``to_ms`` is not looked at.
        from_ms: candidates are engaged from here
        to_ms: to before here.
        device: where to compute.
        half_life_s: how soon what happened is drawn half as often (:class:`BatchSource`).
    """

    def __init__(
        self,
        state: TrainingState,
        log: TrainingLog,
        from_ms: int,
        to_ms: int,
        device: torch.device,
        half_life_s: float | None = None,
    ) -> None:
        self._state, self._device = state, device
        self.config = config = state.config
        self.source = BatchSource(log, config, from_ms, to_ms, half_life_s)
        features = extract(log.contents, config.features, log.item_ids)
        rows, numbered = np.unique(features.tokens, return_inverse=True)
        self._features = replace(features, tokens=numbered.astype(np.int32))
        self._known = np.flatnonzero(log.created_at < to_ms)
        ids = np.full(len(log.item_ids), -1, np.int64)
        ids[self._known] = state.add_ids(features.ids[self._known], self.source.latest(self._known, to_ms))
        used = ids[ids >= 0]
        ids[ids >= 0] = np.arange(len(used))
        self._ids = ids
        self._rows = {"encoder.table": rows.astype(np.int64), "encoder.ids": used}

        taken = {name: self._take(name, values) for name, values in state.weights.items()}
        self.encoder = Encoder(encoder_shape(config, len(used)), below("encoder.", taken)).to(device)
        self.prior = TrainablePrior(below("prior.", taken)).to(device)
        self.codewords = torch.nn.Parameter(torch.tensor(taken["codewords"], device=device))
        self._parameters = {
            **{f"encoder.{name}": self.encoder.of(name) for name in below("encoder.", taken)},
            **{f"prior.{name}": self.prior.of(name) for name in below("prior.", taken)},
            "codewords": self.codewords,
        }
        self._usage = torch.tensor(state.usage, device=device)
        self._over_use = over_use(config.over_use, self._usage, self.codewords.data)
        self.codewords.requires_grad_(self._over_use.gradient)
        self._optimiser = self._adam()

    def _take(self, name: str, values: Float32Array) -> Float32Array:
        rows = self._rows.get(name)
        return values.copy() if rows is None else values[rows]

    def _adam(self) -> torch.optim.AdamW:
        groups = {"encoder.": self.config.weight_decay, "codewords": 0.0, "prior.": 0.0}
        optimiser = torch.optim.AdamW(
            [
                {"params": [p for name, p in self._parameters.items() if name.startswith(group)], "weight_decay": decay}
                for group, decay in groups.items()
            ],
            fused=True,
        )
        for name, parameter in self._parameters.items():
            first, second = (self._take(name, each[name]) for each in (self._state.first, self._state.second))
            optimiser.state[parameter] = {
                "step": torch.tensor(float(self._state.updates.get(name, 0)), device=self._device),
                "exp_avg": torch.tensor(first, device=self._device),
                "exp_avg_sq": torch.tensor(second, device=self._device),
            }
        return optimiser

    def put_back(self) -> None:
        """Write parameters and moments into the state."""
        state = self._state
        for name, parameter in self._parameters.items():
            moments = self._optimiser.state[parameter]
            state.updates[name] = int(moments["step"].item())
            learned = (parameter.detach(), moments["exp_avg"], moments["exp_avg_sq"])
            for whole, part in zip((state.weights, state.first, state.second), learned, strict=True):
                whole[name][self._rows.get(name, slice(None))] = part.cpu().numpy()
        state.usage = self._usage.cpu().numpy().copy()

    def snapshot(self) -> dict[str, Float32Array]:
        """Copies of all parameters, by name."""
        return {name: parameter.detach().cpu().numpy().copy() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Float32Array]) -> None:
        """Back to a :meth:`snapshot`."""
        for name, parameter in self._parameters.items():
            parameter.copy_(torch.from_numpy(snapshot[name]))

    def start_layers(self, active: int) -> None:
        """Layers up to ``active`` that have no codewords yet get some from the items as they are now."""
        while self._state.started < active:
            vectors, books = self._sample_vectors(), self.codewords.detach().cpu().numpy()
            begun = start_layer(vectors, books, self._state.started, self._state.rng)
            with torch.no_grad():
                self.codewords[:, self._state.started] = torch.from_numpy(begun).to(self._device)
            self._state.started += 1

    @torch.no_grad()
    def revive(self) -> None:
        """Move codewords that next to no item chooses to where items are."""
        vectors, books = self._sample_vectors(), self.codewords.cpu().numpy()
        moved = revive(vectors, books, self.config.over_use.revive_below, self._state.rng)
        elsewhere = (np.abs(moved - books) > 2.0**-CODEWORD_BITS).any(axis=-1)
        self.codewords[torch.from_numpy(elsewhere).to(self._device)] = torch.from_numpy(moved[elsewhere]).to(
            self._device
        )

    @torch.no_grad()
    def _sample_vectors(self) -> Float32Array:
        rows = self._known
        if len(rows) > _START_SAMPLE:
            rows = np.sort(self._state.rng.choice(rows, _START_SAMPLE, replace=False))
        parts = [self._vectors(rows[at : at + _CHUNK]) for at in range(0, len(rows), _CHUNK)]
        vectors: Float32Array = torch.cat(parts).cpu().numpy()
        return vectors

    def _vectors(self, rows: Int64Array) -> torch.Tensor:
        return self.encoder(self._features.take(rows), self._ids[rows])  # type: ignore[no-any-return]

    def step(self, layers: int, rates: Rates) -> dict[str, float]:
        """One step with the first ``layers`` layers taking part; returns the parts of the loss.

        Raises:
            UsageError: the loss diverged.
        """
        batch = self.source.draw(self._state.rng)
        vectors = self.encoder(*self._with_dropout(batch.items))
        loss, parts = self._loss(vectors, batch, layers, learns=True)
        parts["loss"] = loss.item()
        if not math.isfinite(parts["loss"]):
            raise UsageError(
                f"the loss is {parts['loss']} at step {self._state.step}; lower learning_rate or raise temperature"
            )
        wanted = (rates.encoder, rates.codewords, rates.prior if self.config.prior.export else 0.0)
        for group, rate in zip(self._optimiser.param_groups, wanted, strict=True):
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return parts

    @torch.no_grad()
    def validate(self, batches: list[Batch], layers: int) -> float:
        """Mean of L_MF + L_QMF over batches, without dropout; nothing is learned."""
        values = []
        for batch in batches:
            _, parts = self._loss(self._vectors(batch.items), batch, layers, learns=False)
            values.append(parts["mf"] + parts["qmf"])
        return float(np.mean(values))

    def _with_dropout(self, rows: Int64Array) -> tuple[FeatureBatch, Int64Array]:
        """Leaves out feature groups at random, but never all of an item's, and ids."""
        config, rng = self.config, self._state.rng
        features, ids = self._features.take(rows), self._ids[rows]
        if config.id_dropout:
            ids = np.where(rng.random(len(rows)) < config.id_dropout, -1, ids)
        if config.group_dropout:
            kept = rng.random(features.scale.shape) >= config.group_dropout
            kept |= ~(kept & (features.scale > 0)).any(0)
            features = replace(features, scale=features.scale * kept.astype(np.float32))
        return features, ids

    def _loss(
        self, vectors: torch.Tensor, batch: Batch, layers: int, *, learns: bool
    ) -> tuple[torch.Tensor, dict[str, float]]:
        config, device = self.config, self._device
        g = self._prior_of(batch)
        rarity = 1 / (1 + torch.from_numpy(batch.counts).to(device)) ** config.over_use.rarity
        total = torch.zeros((), device=device)
        parts = dict.fromkeys(("mf", "qmf", "anchor", "over_use"), 0.0)
        for facet, (label, pairs) in enumerate(zip(config.labels, batch.facets, strict=True)):
            if not len(pairs.positive):
                continue  # every draw was unsuitable; the mean over nothing would be NaN
            of_facet = vectors[:, facet]
            columns = of_facet[: batch.columns]
            scored = _Scored(of_facet, columns, pairs, g, torch.from_numpy(batch.offset).to(device), config)
            terms = {"mf": scored.loss(columns)}
            if layers:
                choose = partial(self._over_use.choose, facet)
                quantised, codes, distances = losses.quantise(columns, self.codewords[facet], layers, choose)
                by_code = losses.straight_through(columns, quantised, config.quantised_encoder_share)
                terms["qmf"] = config.quantised_weight * scored.loss(by_code)
                terms["anchor"] = config.anchor_weight * losses.anchor(columns, quantised, config.commitment)
                terms["over_use"] = self._over_use.penalty(facet, distances)
                if learns:
                    self._over_use.used(facet, codes, columns, rarity)
            for name, term in terms.items():
                total = total + label.weight * term
                parts[name] += label.weight * term.item()
        return total, parts

    def _prior_of(self, batch: Batch) -> torch.Tensor:
        """(K, C) the prior of each column as of each moment."""
        if not self.config.prior.export:
            return torch.zeros(batch.inputs.shape[:2], device=self._device)
        g: torch.Tensor = self.prior(torch.from_numpy(batch.inputs).to(self._device))
        return g


class _Scored:
    """Triggers of one facet against columns; rows are gathered by index_select, whose backward adds in one order."""

    def __init__(
        self,
        vectors: torch.Tensor,
        columns: torch.Tensor,
        pairs: FacetBatch,
        g: torch.Tensor,
        offset: torch.Tensor,
        config: TrainingConfig,
    ) -> None:
        device = vectors.device
        n, triggers = pairs.trigger.shape
        self._temperature = config.temperature
        self._positive = torch.from_numpy(pairs.positive).to(device)
        self._own_column = torch.from_numpy(pairs.own_column).to(device)
        moment = torch.from_numpy(pairs.moment).to(device)
        at = torch.from_numpy(pairs.trigger.ravel()).to(device)
        self._triggers = vectors.index_select(0, at).view(n, triggers, -1)
        self._added = (g + offset).index_select(0, moment)[:, None]
        self._own_prior = g.reshape(-1).index_select(0, moment * g.shape[1] + self._positive)[:, None]
        drawn = torch.from_numpy(pairs.weight).to(device)
        self._weight = losses.soft_weights(self._similarity(columns), drawn, config.soft_temperature)

    def _similarity(self, candidates: torch.Tensor) -> torch.Tensor:
        return (self._triggers * candidates.index_select(0, self._positive)[:, None]).sum(-1)

    def loss(self, candidates: torch.Tensor) -> torch.Tensor:
        """Softmax loss with the columns' vectors (C, d) as they are, or quantised."""
        scores = self._triggers @ candidates.T / self._temperature + self._added
        own = self._similarity(candidates) / self._temperature + self._own_prior
        return losses.sampled_softmax(scores, own, self._positive, self._own_column, self._weight)


class TrainablePrior(torch.nn.Module):
    """The trainable side of :class:`model_runtime.prior.Prior`; it sees the same inputs."""

    def __init__(self, weights: dict[str, Float32Array]) -> None:
        super().__init__()
        named = {name.replace(".", "_"): torch.tensor(values) for name, values in weights.items()}
        self._values = torch.nn.ParameterDict({name: torch.nn.Parameter(each) for name, each in named.items()})

    def of(self, name: str) -> torch.nn.Parameter:
        """A parameter by the name of its weight."""
        parameter: torch.nn.Parameter = self._values[name.replace(".", "_")]
        return parameter

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The prior (...,) of inputs (..., W + 1)."""
        values, layer = self._values, 0
        while f"layer{layer}_bias" in values:
            inputs = torch.relu(inputs @ values[f"layer{layer}_weight"] + values[f"layer{layer}_bias"])
            layer += 1
        g: torch.Tensor = (inputs @ values[f"layer{layer}_weight"]).squeeze(-1)
        return g
