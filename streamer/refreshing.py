"""Generations that begin as a copy of the one in use, encoded anew with another model.

Beside its model and shards such a generation has a file ``refreshing`` until it is promoted: what a process that was
killed left unfinished is found by it, and gone on with. A generation that gave its place to another has a file
``served``: once it is not the one before either, nobody goes back to it. The data directory's file ``followed`` tells
which model was followed last: it is not followed again once it was gone back from and its generation dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from indexer.durable import sync_path
from indexer.failpoints import failpoint
from indexer.store import Store
from schemas.artifact import ArtifactManifest
from schemas.config import Config
from schemas.errors import StoreError, StoreMismatchError, UsageError
from schemas.refresh import Refreshed, merged
from streamer.generations import (
    current_generation,
    drop_generation,
    generations,
    make_generation,
    model_path,
    next_name,
    point_to,
    pointer,
    store_meta,
)
from streamer.shards import Generation

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without

log = structlog.get_logger(__name__)

_UNFINISHED: Final = "refreshing"
_SERVED: Final = "served"
_FOLLOWED: Final = "followed"


def coming(config: Config, serving: Generation, artifact: Path) -> Generation:
    """The generation that takes over with an artifact; one that was begun with it is gone on with, others are dropped.

    Args:
        config: all settings.
        serving: the one in use.
        artifact: the new model's directory.

    Raises:
        ArtifactError: the artifact is missing or damaged, or its prior reads counts that the index does not keep.
        UsageError: the generation in use is of this model.
        StoreMismatchError: the new model takes other items than the one in use.
        StoreError: the disk refuses.
    """
    from model_runtime.runtime import FrozenModel  # noqa: PLC0415  # loads torch, which reading commands do without

    model = FrozenModel.load(artifact, config.model.device, config.model.threads)
    _check(config, serving, model)
    name = None
    for unfinished in unfinished_generations(config.data_dir):
        own = model_path(config.data_dir, unfinished)
        if name is None and (not own.exists() or same_model(manifest_of(own), model.manifest)):
            name = unfinished
        else:
            drop_generation(config.data_dir, unfinished)
    if name is None:
        name = next_name(config.data_dir)
        folder = config.data_dir / "generations" / name
        try:
            folder.mkdir(parents=True)
            (folder / _UNFINISHED).touch()
            sync_path(folder)
        except OSError as error:
            raise StoreError(f"cannot write to {config.data_dir}: {error}; free disk space") from error
        failpoint("refresh.named")
    make_generation(config.data_dir, name, model)
    return Generation(name, model)


def _check(config: Config, serving: Generation, model: FrozenModel) -> None:
    mine, its = serving.model.manifest, model.manifest
    if same_model(mine, its):
        raise UsageError(f"generation {serving.name} is of this model already: {its.name} {its.version}")
    store_meta(model, serving.name, config.counters.half_lives_s)  # refuses half-lives that nobody counted
    if mine.features.dense_dim != its.features.dense_dim:
        raise StoreMismatchError(
            f"model {its.name} {its.version} takes embeddings of {its.features.dense_dim} dimensions, generation "
            f"{serving.name} holds items with {mine.features.dense_dim}: what one model refuses the other does not; "
            "build the generation from the topics with `facetstream generation create`"
        )


def same_model(one: ArtifactManifest, other: ArtifactManifest) -> bool:
    """Whether two artifacts say the same of every item, whatever is told of their training."""
    return (one.files, one.features) == (other.files, other.features)


def manifest_of(directory: Path) -> ArtifactManifest:
    """What an artifact says of itself.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    from model_runtime.artifact import read_manifest  # noqa: PLC0415  # loads torch's tensors library

    return read_manifest(directory)


def was_built_with(data_dir: Path, wanted: ArtifactManifest) -> bool:
    """Whether a generation is of this model, or was one that answered, when this was last asked.

    The answer outlives the generation: after a rollback the one that was gone back from may be dropped.

    Raises:
        StoreError: if the disk refuses.
        ArtifactError: if the model of a generation is damaged.
    """
    note, told = data_dir / _FOLLOWED, wanted.model_dump_json(include={"files", "features"})
    unfinished, in_use = unfinished_generations(data_dir), current_generation(data_dir)
    try:
        known = note.exists() and note.read_text() == told
        for name in generations(data_dir):
            own = model_path(data_dir, name)
            if known or name in unfinished or not own.exists() or not same_model(manifest_of(own), wanted):
                continue
            if name == in_use or (own.parent / _SERVED).exists():
                aside = note.with_name(f"{note.name}.partial")
                aside.write_text(told)
                aside.replace(note)
            known = True
    except OSError as error:
        raise StoreError(f"cannot read or write in {data_dir}: {error}; free disk space") from error
    return known


def unfinished_generations(data_dir: Path) -> list[str]:
    """Names of those that were begun and neither promoted nor dropped.

    Raises:
        StoreError: if the data directory cannot be read.
    """
    in_use = current_generation(data_dir)
    marked = [name for name in generations(data_dir) if (data_dir / "generations" / name / _UNFINISHED).exists()]
    if in_use in marked:  # it was killed right after the switch
        (data_dir / "generations" / in_use / _UNFINISHED).unlink(missing_ok=True)
    return [name for name in marked if name != in_use]


def switch_to(data_dir: Path, generation: str, before: str) -> None:
    """As :func:`streamer.generations.point_to`, and note that one served and nothing is left to do for the other.

    Raises:
        StoreError: if the disk refuses.
    """
    folder = data_dir / "generations"
    try:
        (folder / before / _SERVED).touch()
        point_to(data_dir, generation, before)
        failpoint("refresh.promoted")
        (folder / generation / _UNFINISHED).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {data_dir}: {error}; free disk space") from error


def drop_served(data_dir: Path) -> list[str]:
    """Drop generations that served and are neither in use nor the one before; returns their names.

    Raises:
        StoreError: if the disk refuses.
    """
    at = pointer(data_dir)
    old = [
        name
        for name in generations(data_dir)
        if name not in {at.current, at.previous} and (data_dir / "generations" / name / _SERVED).exists()
    ]
    for name in old:
        freed = drop_generation(data_dir, name)
        log.info("generation_dropped", generation=name, bytes=freed)
    return old


def refreshed(stores: Iterable[Store]) -> Refreshed | None:
    """What was done to the shards of a generation; None where none was made of another's items.

    Raises:
        StoreError: if a store cannot be read.
    """
    return merged([found for store in stores if (found := store.refreshed()) is not None])
