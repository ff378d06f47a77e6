"""A model that learned nothing, for tests and benchmarks: random weights, codebook fitted to made-up items."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from model_runtime import artifact as artifacts
from model_runtime.encoder import EncoderShape, FrozenEncoder, freeze, initial_weights
from model_runtime.features import extract
from model_runtime.kmeans import residual_codebook
from model_runtime.prior import PriorShape
from model_runtime.prior import freeze as freeze_prior
from schemas.artifact import FacetLabel, FeatureSpec, PriorSpec, TrainingWindow
from schemas.events import ItemContent

_VOCABULARY: Final = 4_096
_ITERATIONS: Final = 4


def untrained_artifact(
    facets: int,
    layers: int,
    codewords: int,
    dim: int,
    seed: int,
    features: FeatureSpec,
    token_dim: int,
    hidden: tuple[int, ...],
    half_lives_s: tuple[int, ...] = (),
) -> artifacts.Artifact:
    """An artifact that depends on its arguments alone, down to the hashes of its files."""
    shape = EncoderShape(features, facets, dim, token_dim, hidden)
    rng = np.random.default_rng(seed)
    encoder, _ = freeze(initial_weights(shape, rng))
    sample = extract(_made_up(max(1_024, 8 * codewords), rng, features.dense_dim), features)
    vectors = FrozenEncoder(shape, encoder, torch.device("cpu")).encode(sample)
    return artifacts.assemble(
        name="untrained",
        version=str(seed),
        shape=shape,
        encoder=encoder,
        codewords=residual_codebook(vectors.astype(np.float32), layers, codewords, _ITERATIONS, rng),
        labels=tuple(FacetLabel(name=f"facet{facet}", kind="next") for facet in range(facets)),
        window=TrainingWindow(from_ms=0, to_ms=0, items=0, engagements=0),
        metrics={},
        prior=_prior(half_lives_s, seed) if half_lives_s else None,
    )


def _prior(half_lives_s: tuple[int, ...], seed: int) -> tuple[PriorSpec, dict[str, npt.NDArray[np.float32]]]:
    """One that likes what it likes for no reason."""
    spec, rng = PriorSpec(half_lives_s=half_lives_s, hidden=(32,), temperature=0.15), np.random.default_rng(seed)
    shapes = PriorShape(spec.half_lives_s, spec.hidden).weights()
    return spec, freeze_prior({name: rng.normal(0, 0.5, size).astype(np.float32) for name, size in shapes.items()})


def _made_up(count: int, rng: np.random.Generator, dense_dim: int) -> list[ItemContent]:
    """Items with titles of one to six pseudo-words, most words rare, and one to three categories."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 9, _VOCABULARY)]
    ranks = np.minimum(rng.zipf(1.2, (count, 6)), _VOCABULARY) - 1
    lengths, labels = rng.integers(1, 7, count), rng.integers(0, 20, (count, 3))
    dense = rng.standard_normal((count, dense_dim))
    return [
        ItemContent(
            title=" ".join(words[rank] for rank in ranks[i, : lengths[i]]),
            categories=[f"c{label}" for label in dict.fromkeys(labels[i].tolist())],
            embedding=dense[i].tolist() if dense_dim else None,
        )
        for i in range(count)
    ]
