"""The models of the benchmarks: F = 3 facets, L = 2 layers of M = 256 codewords, d = 64; nothing was learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from model_runtime import artifact as artifacts
from model_runtime.kmeans import residual_codebook
from model_runtime.runtime import FrozenModel
from schemas.events import ITEM_EVENT, ItemContent

_SAMPLE: Final = 20_000
_ITERATIONS: Final = 8


def make_model(workdir: Path) -> Path:
    """The untrained model of product and tests, in ``workdir / "model"``: its codebook is fitted to other items."""
    path = workdir / "model"
    if not path.exists():
        FrozenModel.untrained(codewords=256, threads=1).save(path)
    return path


def make_fitted_model(workdir: Path, lines: Sequence[bytes]) -> Path:
    """As :func:`make_model`, with a codebook fitted to a sample of the load, as training would leave it."""
    base = artifacts.load(make_model(workdir))
    sample = [ITEM_EVENT.validate_json(line) for line in lines[:: max(1, len(lines) // _SAMPLE)]]
    contents = [event for event in sample if isinstance(event, ItemContent)]
    vectors = FrozenModel(base, threads=1).encode(contents).vectors.astype(np.float32)
    manifest = base.manifest
    fitted = artifacts.assemble(
        name="untrained, codebook fitted to the load",
        version="0",
        shape=artifacts.shape_of(manifest),
        encoder=base.encoder,
        codewords=residual_codebook(
            vectors, manifest.layers, manifest.codewords, _ITERATIONS, np.random.default_rng(0)
        ),
        labels=manifest.labels,
        window=manifest.window,
        metrics={},
    )
    artifacts.save(fitted, workdir / "model")
    return workdir / "model"
