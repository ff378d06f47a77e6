"""A model that learned nothing, for tests and benchmarks: random weights, codebook fitted to made-up items."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from model_runtime import artifact as artifacts
from model_runtime.encoder import EncoderShape, FrozenEncoder, freeze, initial_weights
from model_runtime.features import extract
from model_runtime.kmeans import residual_codebook
from schemas.artifact import FacetLabel, FeatureSpec, TrainingWindow
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
    )


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
