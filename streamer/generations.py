"""Index versions below a data directory: ``generations/NAME/`` holds the model it was built with and its shards.

The file ``CURRENT`` names the generation in use and, on its second line, the one before it. A generation carries a copy
of its model, so that reading commands need nothing but the data directory. A shard that another process has taken over
stays on disk, in case it comes back, with a file ``shard-00000.released`` beside it: nobody answers from it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from indexer.failpoints import failpoint
from indexer.index import Index
from indexer.reencoding import Encode
from indexer.store import Store, now_ms, store_path
from indexer.verify import Reencode
from schemas.artifact import ArtifactManifest
from schemas.config import Config
from schemas.errors import ArtifactError, NotFoundError, StoreError, StoreMismatchError, UsageError
from schemas.events import ITEM_EVENT, ItemContent
from schemas.store import StoreMeta

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without

FIRST: Final = "g000001"
MEMBER_ID: Final = "member-id"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBERED: Final = re.compile(r"g(\d{6})")
_SHARD: Final = re.compile(r"shard-(\d{5})")
_DROPPING: Final = "dropping-"


@dataclass(frozen=True, slots=True)
class Pointer:
    """What ``CURRENT`` says: the generation in use, and the one that was before it."""

    current: str
    previous: str | None


def pointer(data_dir: Path) -> Pointer:
    """Which generation is in use; the first one's name where nothing is there yet.

    Raises:
        StoreError: if the data directory cannot be read.
    """
    try:
        names = (data_dir / "CURRENT").read_text().split()
    except FileNotFoundError:
        names = []
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"cannot read {data_dir / 'CURRENT'}: {error}; it should hold the name of a directory in generations/"
        ) from error
    return Pointer(names[0] if names else FIRST, names[1] if len(names) > 1 else None)


def current_generation(data_dir: Path) -> str:
    """Name of the generation in use.

    Raises:
        StoreError: as :func:`pointer`.
    """
    return pointer(data_dir).current


def point_to(data_dir: Path, generation: str, previous: str | None) -> None:
    """Make a generation the one in use; atomic, and durable when this returns.

    Raises:
        StoreError: if the disk refuses.
    """
    target = data_dir / "CURRENT"
    aside = target.with_name("CURRENT.partial")
    try:
        failpoint("promote.before")
        with aside.open("w") as file:
            file.write("".join(f"{name}\n" for name in (generation, previous) if name is not None))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
        folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        failpoint("promote.after")
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error}; choose another --data-dir or free disk space") from error


def generations(data_dir: Path) -> list[str]:
    """Names of all generations there are, sorted."""
    folder = data_dir / "generations"
    if not folder.is_dir():
        return []
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(_DROPPING))


def next_name(data_dir: Path) -> str:
    """A name for a new generation: the next number."""
    numbers = [int(found[1]) for name in generations(data_dir) if (found := _NUMBERED.fullmatch(name))]
    return f"g{max(numbers, default=0) + 1:06d}"


def model_path(data_dir: Path, generation: str) -> Path:
    """Where a generation's own copy of its model lies."""
    return data_dir / "generations" / generation / "model"


def dead_letter_path(data_dir: Path, generation: str, shard: int = 0) -> Path:
    """The file of a shard's dead letters, where they do not go to a topic."""
    return data_dir / "generations" / generation / f"deadletters-{shard:05d}.jsonl"


def dead_letter_files(data_dir: Path) -> list[Path]:
    """The dead-letter files of the generation in use, by shard."""
    folder = data_dir / "generations" / current_generation(data_dir)
    return sorted(folder.glob("deadletters-*.jsonl"))


def make_generation(data_dir: Path, generation: str, model: FrozenModel) -> None:
    """Make the directory of a generation, with its copy of the model, if it is not there; the first becomes current.

    Raises:
        StoreError: if the disk refuses.
        UsageError: if the name cannot be a directory's.
    """
    if not _NAME.fullmatch(generation):
        raise UsageError(f"{generation!r} is no name for a generation; use letters, digits, dots, dashes, underscores")
    own = model_path(data_dir, generation)
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        if not own.exists():
            model.save(own)
            failpoint("generation.created")
    except OSError as error:
        raise StoreError(f"cannot write to {data_dir}: {error}; choose another --data-dir") from error
    if not (data_dir / "CURRENT").exists():
        point_to(data_dir, generation, None)


def require_generation(data_dir: Path, generation: str) -> None:
    """Raise unless there is this generation.

    Raises:
        NotFoundError: naming those there are.
    """
    there = generations(data_dir)
    if generation not in there:
        raise NotFoundError(
            f"there is no generation {generation!r} in {data_dir}; there are: {', '.join(there) or 'none'}"
        )


def drop_generation(data_dir: Path, generation: str) -> int:
    """Remove a generation that is not in use; returns the bytes freed.

    A crash in between leaves a directory ``dropping-...``, which the next drop removes with its own.

    Raises:
        NotFoundError: if there is none of that name.
        UsageError: if it is the one in use.
        StoreError: if a process writes to it, or the disk refuses.
    """
    require_generation(data_dir, generation)
    at = pointer(data_dir)
    if generation == at.current:
        raise UsageError(f"generation {generation} is in use; promote another or roll back first")
    for shard in local_shards(data_dir, generation, released=True):
        Store.open(store_path(data_dir, generation, shard)).close()  # nobody writes to it, or this raises
    folder = data_dir / "generations"
    try:
        freed = sum(file.stat().st_size for file in (folder / generation).rglob("*") if file.is_file())
        if at.previous == generation:
            point_to(data_dir, at.current, None)
        _remove_dropped(folder)  # before, too: one may have the name that is needed
        (folder / generation).rename(folder / f"{_DROPPING}{generation}")
        _remove_dropped(folder)
    except OSError as error:
        raise StoreError(f"cannot remove generation {generation}: {error}") from error
    return freed


def _remove_dropped(folder: Path) -> None:
    for left in folder.glob(f"{_DROPPING}*"):
        shutil.rmtree(left)


def store_meta(model: FrozenModel, generation: str, half_lives_s: tuple[int, ...]) -> StoreMeta:
    """What a model makes of a store.

    Raises:
        ArtifactError: its prior reads counts that the store would not have.
    """
    manifest = model.manifest
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
        prior=None if model.prior is None else model.prior.learned(half_lives_s),
        created_at_ms=now_ms(),
    )


def load_model(config: Config, generation: str | None = None) -> FrozenModel:
    """The model of a generation, by default the one in use; where it has none yet, the artifact at ``model.path``.

    An artifact at ``model.path`` must be that of one of the generations: a rollback needs no new configuration, a
    model that nothing was built with is a mistake.

    Raises:
        ArtifactError: if there is none, or it is damaged.
        StoreMismatchError: if the configured artifact is not one that a generation was built with.
    """
    from model_runtime.runtime import FrozenModel  # noqa: PLC0415  # loads torch, which reading commands do without

    name = current_generation(config.data_dir) if generation is None else generation
    own = model_path(config.data_dir, name)
    if not own.exists():
        first = _first_model(config)
        if not first.exists():
            raise ArtifactError(f"no model artifact at {first}; train one with `facetstream train`, or give --model")
        return FrozenModel.load(first, device=config.model.device, threads=config.model.threads)
    model = FrozenModel.load(own, device=config.model.device, threads=config.model.threads)
    if config.model.follow is None and config.model.path.exists():  # else it was followed long ago
        _check_known(config, name, model.manifest)
    return model


def _first_model(config: Config) -> Path:
    """What a first generation is built with: the newest that is followed, else the configured one."""
    from model_runtime.published import newest  # noqa: PLC0415  # loads torch's tensors library

    followed = None if config.model.follow is None else newest(config.model.follow)
    return config.model.path if followed is None else followed


def _check_known(config: Config, generation: str, mine: ArtifactManifest) -> None:
    """Refuse a configured artifact that no generation was built with."""
    from model_runtime.artifact import read_manifest  # noqa: PLC0415  # as above

    given = read_manifest(config.model.path)
    others = [model_path(config.data_dir, name) for name in generations(config.data_dir) if name != generation]
    known = [mine, *(read_manifest(path) for path in others if path.exists())]
    if any((each.model_hash, each.codebook_hash) == (given.model_hash, given.codebook_hash) for each in known):
        return
    for name in ("model_hash", "codebook_hash"):
        own, theirs = getattr(mine, name), getattr(given, name)
        if own != theirs:
            raise StoreMismatchError(
                f"generation {generation} in {config.data_dir} was built with {name} {own}, the artifact "
                f"{config.model.path} has {theirs}; give the artifact it was built with, build another generation "
                "with `facetstream generation create --model`, or take another --data-dir"
            )


def open_index(config: Config, model: FrozenModel, shard: int = 0, generation: str | None = None) -> Index:
    """Open a shard for writing, or make an empty one.

    Raises:
        StoreError: and its kinds, as :meth:`indexer.index.Index.open` says.
    """
    name = current_generation(config.data_dir) if generation is None else generation
    make_generation(config.data_dir, name, model)
    path = store_path(config.data_dir, name, shard)
    try:
        path.mkdir(parents=True, exist_ok=True)
        index = Index.open(path, store_meta(model, name, config.counters.half_lives_s), model.codewords, config)
        own_shard(config.data_dir, name, shard)
    except OSError as error:
        raise StoreError(f"cannot write to {config.data_dir}: {error}; choose another --data-dir") from error
    return index


def is_member(config: Config) -> bool:
    """Whether this data directory is that of a member of a group, and other members have other shards."""
    kafka = config.kafka
    named = kafka.group_instance_id is not None or (config.data_dir / MEMBER_ID).exists()
    return config.source.kind == "kafka" and kafka.membership == "group" and named


def release_shard(data_dir: Path, shard: int) -> None:
    """Note that another process has this shard now: what is here, of any generation, is no longer kept up to date.

    Raises:
        StoreError: if the disk refuses.
    """
    try:
        for generation in generations(data_dir):
            path = store_path(data_dir, generation, shard)
            if path.exists():
                _released(path).touch()
    except OSError as error:
        raise StoreError(f"cannot write to {data_dir}: {error}; free disk space") from error


def own_shard(data_dir: Path, generation: str, shard: int) -> None:
    """Undo :func:`release_shard` for one generation: what is here will be kept up to date."""
    _released(store_path(data_dir, generation, shard)).unlink(missing_ok=True)


def local_shards(data_dir: Path, generation: str, *, released: bool = False) -> list[int]:
    """Numbers of the shards here that this data directory owns, ascending; with ``released`` all that are here."""
    folder = data_dir / "generations" / generation
    found: list[int] = []
    for path in folder.iterdir() if folder.is_dir() else ():
        number = _SHARD.fullmatch(path.name)
        if number and (path / "CURRENT").exists() and (released or not _released(path).exists()):
            found.append(int(number[1]))
    return sorted(found)


@contextmanager
def open_for_reading(config: Config, generation: str | None = None) -> Iterator[dict[int, Store]]:
    """Secondaries of the shards here, by number; they work while a daemon writes.

    Raises:
        StoreError: if there is no store.
    """
    name = current_generation(config.data_dir) if generation is None else generation
    shards: Sequence[int] = local_shards(config.data_dir, name) or [0]  # of which opening says that it is not there
    with ExitStack() as open_stores:
        yield {
            shard: open_stores.enter_context(Store.open_secondary(store_path(config.data_dir, name, shard)))
            for shard in shards
        }


def remove_all(data_dir: Path) -> None:
    """Remove all generations, for starting anew."""
    shutil.rmtree(data_dir / "generations", ignore_errors=True)
    for name in ("CURRENT", "followed"):
        (data_dir / name).unlink(missing_ok=True)


def encoder_of(model: FrozenModel) -> Encode:
    """A function from the bytes of n stored events to (n, F, d) embeddings and (n, F) raw indices."""

    def encode(content: list[bytes]) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint32]]:
        events = [ITEM_EVENT.validate_json(value) for value in content]
        encoded = model.encode([event for event in events if isinstance(event, ItemContent)])
        return encoded.vectors, encoded.raw

    return encode


def reencoder(model: FrozenModel) -> Reencode:
    """A function from the bytes of n stored events to (n, F) raw indices."""
    encode = encoder_of(model)
    return lambda content: encode(content)[1]


def _released(path: Path) -> Path:
    return path.with_name(path.name + ".released")
