"""Index versions below a data directory: ``generations/NAME/`` holds the model it was built with and its store.

The file ``CURRENT`` names the generation in use. A generation carries a copy of its model, so that reading commands
need nothing but the data directory.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from indexer.index import Index
from indexer.store import Store, now_ms, store_path
from indexer.verify import Reencode
from schemas.artifact import ArtifactManifest
from schemas.config import Config
from schemas.errors import ArtifactError, StoreError, StoreMismatchError
from schemas.events import ITEM_EVENT, ItemContent
from schemas.store import StoreMeta

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without

FIRST: Final = "g000001"


def current_generation(data_dir: Path) -> str:
    """Name of the generation in use; the first one's where nothing is there yet.

    Raises:
        StoreError: if the data directory cannot be read.
    """
    try:
        return (data_dir / "CURRENT").read_text().strip() or FIRST
    except FileNotFoundError:
        return FIRST
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"cannot read {data_dir / 'CURRENT'}: {error}; it should hold the name of a directory in generations/"
        ) from error


def model_path(data_dir: Path, generation: str) -> Path:
    """Where a generation's own copy of its model lies."""
    return data_dir / "generations" / generation / "model"


def store_meta(manifest: ArtifactManifest, generation: str, half_lives_s: tuple[int, ...]) -> StoreMeta:
    """What an artifact makes of a store."""
    return StoreMeta(
        generation=generation,
        model_name=manifest.name,
        model_version=manifest.version,
        model_hash=manifest.model_hash,
        codebook_hash=manifest.codebook_hash,
        facets=manifest.facets,
        layers=manifest.layers,
        codewords=manifest.codewords,
        dim=manifest.dim,
        half_lives_s=half_lives_s,
        created_at_ms=now_ms(),
    )


def load_model(config: Config) -> FrozenModel:
    """The model of the generation in use, checked against ``model.path`` when there is an artifact; else that artifact.

    Raises:
        ArtifactError: if there is none, or it is damaged.
        StoreMismatchError: if the configured artifact is not the one the generation was built with.
    """
    from model_runtime.runtime import FrozenModel  # noqa: PLC0415  # loads torch, which reading commands do without

    generation = current_generation(config.data_dir)
    own = model_path(config.data_dir, generation)
    options = {"device": config.model.device, "threads": config.model.threads}
    if not own.exists():
        if not config.model.path.exists():
            raise ArtifactError(
                f"no model artifact at {config.model.path}; train one with `facetstream train`, or give --model"
            )
        return FrozenModel.load(config.model.path, **options)  # type: ignore[arg-type]  # a dict of mixed values
    model = FrozenModel.load(own, **options)  # type: ignore[arg-type]  # as above
    if config.model.path.exists():
        given = FrozenModel.load(config.model.path).manifest
        for name in ("model_hash", "codebook_hash"):
            mine, theirs = getattr(model.manifest, name), getattr(given, name)
            if mine != theirs:
                raise StoreMismatchError(
                    f"generation {generation} in {config.data_dir} was built with {name} {mine}, the artifact "
                    f"{config.model.path} has {theirs}; give the artifact it was built with, or another --data-dir"
                )
    return model


def open_index(config: Config, model: FrozenModel) -> Index:
    """Open the generation in use for writing, or make the first one.

    Raises:
        StoreError: and its kinds, as :meth:`indexer.index.Index.open` says.
    """
    generation = current_generation(config.data_dir)
    path = store_path(config.data_dir, generation)
    try:
        path.mkdir(parents=True, exist_ok=True)
        own = model_path(config.data_dir, generation)
        if not own.exists():
            model.save(own)
        pointer = config.data_dir / "CURRENT"
        if not pointer.exists():
            aside = pointer.with_name("CURRENT.partial")
            aside.write_text(generation + "\n")
            aside.replace(pointer)
    except OSError as error:
        raise StoreError(f"cannot write to {config.data_dir}: {error}; choose another --data-dir") from error
    meta = store_meta(model.manifest, generation, config.counters.half_lives_s)
    return Index.open(path, meta, model.codewords, config)


def open_for_reading(config: Config) -> Store:
    """A secondary of the generation in use; works while a daemon writes.

    Raises:
        StoreError: if there is no store.
    """
    return Store.open_secondary(store_path(config.data_dir, current_generation(config.data_dir)))


def remove_all(data_dir: Path) -> None:
    """Remove all generations, for starting anew."""
    shutil.rmtree(data_dir / "generations", ignore_errors=True)
    (data_dir / "CURRENT").unlink(missing_ok=True)


def reencoder(model: FrozenModel) -> Reencode:
    """A function from the bytes of n stored events to (n, F) raw indices."""

    def reencode(content: list[bytes]) -> npt.NDArray[np.uint32]:
        events = [ITEM_EVENT.validate_json(value) for value in content]
        return model.encode([event for event in events if isinstance(event, ItemContent)]).raw

    return reencode
