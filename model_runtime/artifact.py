"""A model artifact on disk: written whole or not at all, read only when all of it is as its manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_from_bytes
from safetensors.numpy import save as tensors_to_bytes

from model_runtime import fixed_point as fx
from model_runtime.codebook import too_long
from model_runtime.encoder import EncoderShape, weight_grid
from model_runtime.prior import PriorShape
from schemas.artifact import ArtifactManifest, FacetLabel, PriorSpec, TrainingWindow
from schemas.errors import ArtifactError
from schemas.prior import BITS, LIMIT

Float32Array = npt.NDArray[np.float32]
U64Array = npt.NDArray[np.uint64]

MANIFEST: Final = "manifest.json"
ENCODER: Final = "encoder.safetensors"
CODEBOOK: Final = "codebook.safetensors"
PRIOR: Final = "prior.safetensors"
_ID_KEYS: Final = "id_keys"
FORMAT_VERSION: Final = 1
_Expected = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest with the arrays it describes.

    Attributes:
        manifest: names the SHA-256 of each file.
        encoder: weights by name, float32 on the frozen encoder's grid.
        codewords: (F, L, M, d) float32 on the codeword grid.
        id_keys: (ids,) uint64, ascending: hash of the identifier that each id row belongs to.
        prior: weights by name on the frozen prior's grid; empty where the manifest has no prior.
    """

    manifest: ArtifactManifest
    encoder: dict[str, Float32Array]
    codewords: Float32Array
    id_keys: U64Array
    prior: dict[str, Float32Array]


def shape_of(manifest: ArtifactManifest) -> EncoderShape:
    """The encoder that a manifest describes.

    Raises:
        ArtifactError: a width is too large to compute exactly.
    """
    try:
        return EncoderShape(
            manifest.features, manifest.facets, manifest.dim, manifest.token_dim, manifest.hidden, manifest.ids
        )
    except ValueError as error:
        raise ArtifactError(f"manifest of model {manifest.name!r}: {error}") from error


def prior_shape_of(spec: PriorSpec) -> PriorShape:
    """The prior that a manifest describes.

    Raises:
        ArtifactError: a width is too large to compute exactly.
    """
    try:
        return PriorShape(spec.half_lives_s, spec.hidden)
    except ValueError as error:
        raise ArtifactError(f"manifest: {error}") from error


def assemble(
    *,
    name: str,
    version: str,
    shape: EncoderShape,
    encoder: dict[str, Float32Array],
    codewords: Float32Array,
    labels: tuple[FacetLabel, ...],
    window: TrainingWindow,
    metrics: dict[str, float],
    id_keys: U64Array | None = None,
    table_exponent: int = 0,
    prior: tuple[PriorSpec, dict[str, Float32Array]] | None = None,
) -> Artifact:
    """An artifact of grid weights, with the hashes its files will have."""
    facets, layers, size, dim = codewords.shape
    keys = np.zeros(0, np.uint64) if id_keys is None else id_keys
    prior_weights = {} if prior is None else prior[1]
    files = _tensor_files(encoder, codewords, keys, prior_weights)
    manifest = ArtifactManifest(
        name=name,
        version=version,
        facets=facets,
        layers=layers,
        codewords=size,
        dim=dim,
        token_dim=shape.token_dim,
        hidden=shape.hidden,
        ids=len(keys),
        table_exponent=table_exponent,
        prior=None if prior is None else prior[0],
        features=shape.features,
        labels=labels,
        window=window,
        metrics=metrics,
        files={file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
    )
    return Artifact(manifest, encoder, codewords, keys, prior_weights)


def _tensor_files(
    encoder: dict[str, Float32Array], codewords: Float32Array, id_keys: U64Array, prior: dict[str, Float32Array]
) -> dict[str, bytes]:
    named: dict[str, npt.NDArray[Any]] = dict(encoder)
    if len(id_keys):
        named[_ID_KEYS] = id_keys
    files = {ENCODER: tensors_to_bytes(named), CODEBOOK: tensors_to_bytes({"codewords": codewords})}
    if prior:
        files[PRIOR] = tensors_to_bytes(prior)
    return files


def with_metrics(artifact: Artifact, metrics: dict[str, float]) -> Artifact:
    """The same model with further figures in its manifest; its hashes do not change."""
    manifest = artifact.manifest.model_copy(update={"metrics": {**artifact.manifest.metrics, **metrics}})
    return replace(artifact, manifest=manifest)


def save(artifact: Artifact, directory: Path, beside: Callable[[Path], None] = lambda _: None) -> None:
    """Write the artifact beside its place, sync it, and rename it there: no reader ever sees half of one.

    An artifact that is already there is replaced; anything else of that name is left alone.

    Args:
        artifact: what to write.
        directory: where to.
        beside: told the directory before it gets its name, to add files of its own, which it syncs.

    Raises:
        ArtifactError: the place is taken by something else, or cannot be written.
    """
    files = {
        **_tensor_files(artifact.encoder, artifact.codewords, artifact.id_keys, artifact.prior),
        MANIFEST: (artifact.manifest.model_dump_json(indent=2) + "\n").encode(),
    }
    if _is_something_else(directory):
        raise ArtifactError(f"{directory} exists and is no model artifact; give another place or remove it")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            aside.chmod(0o755)  # mkdtemp's 0o700 would lock out a daemon that runs as another user
            for file, content in files.items():
                with (aside / file).open("wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
            beside(aside)
            _sync_directory(aside)
            if directory.exists():
                directory.rename(aside / "replaced")
            aside.rename(directory)
            shutil.rmtree(directory / "replaced", ignore_errors=True)
            _sync_directory(directory.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(
            f"model artifact {directory} cannot be written: {error}; check space and permissions"
        ) from error


def _is_something_else(directory: Path) -> bool:
    if not directory.is_dir():
        return directory.exists()
    return not (directory / MANIFEST).is_file() and any(directory.iterdir())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(directory: Path) -> Artifact:
    """Read an artifact and check all of it.

    Raises:
        ArtifactError: says which file is missing, altered or does not fit, with what was found and expected.
    """
    manifest = read_manifest(directory)
    shape = shape_of(manifest)
    in_encoder = _float32(shape.weights())
    if manifest.ids:
        in_encoder[_ID_KEYS] = (np.dtype(np.uint64), (manifest.ids,))
    tensors = _read_tensors(directory, ENCODER, manifest, in_encoder)
    id_keys: U64Array = tensors.pop(_ID_KEYS, np.zeros(0, np.uint64))
    if (id_keys[1:] <= id_keys[:-1]).any():
        raise ArtifactError(f"{directory / ENCODER}: {_ID_KEYS} do not ascend; export the model again")
    book_shape = (manifest.facets, manifest.layers, manifest.codewords, manifest.dim)
    codewords = _read_tensors(directory, CODEBOOK, manifest, _float32({"codewords": book_shape}))["codewords"]
    prior: dict[str, Float32Array] = {}
    if manifest.prior is not None:
        prior = _read_tensors(directory, PRIOR, manifest, _float32(prior_shape_of(manifest.prior).weights()))
    for name, values in tensors.items():
        _check_grid(directory / ENCODER, name, values, *weight_grid(name))
    for name, values in prior.items():
        _check_grid(directory / PRIOR, name, values, BITS, LIMIT)
    _check_grid(directory / CODEBOOK, "codewords", codewords, fx.CODEWORD_BITS, fx.CODEWORD_LIMIT)
    if too_long(codewords):
        raise ArtifactError(f"{directory / CODEBOOK}: codewords are too long to compare exactly; train the model again")
    return Artifact(manifest, tensors, codewords, id_keys, prior)


def _float32(shapes: dict[str, tuple[int, ...]]) -> _Expected:
    return {name: (np.dtype(np.float32), shape) for name, shape in shapes.items()}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"model artifact: {path} is missing; train a model or copy the whole directory") from error
    except OSError as error:
        raise ArtifactError(f"model artifact: {path} cannot be read: {error}") from error


def read_manifest(directory: Path) -> ArtifactManifest:
    """What an artifact says of itself; its files are not looked at.

    Raises:
        ArtifactError: if the manifest is missing, altered beyond reading, or of another format.
    """
    path = directory / MANIFEST
    try:
        document = json.loads(_read_bytes(path))
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON: {error}") from error
    found = document.get("format_version") if isinstance(document, dict) else None
    if found != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format_version {found!r}, this program reads {FORMAT_VERSION}; train the model again"
        )
    try:
        return ArtifactManifest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'manifest'}: {fault['msg']}" for fault in error.errors()
        )
        raise ArtifactError(f"{path} is no valid manifest: {faults}") from error


def _read_tensors(
    directory: Path, file: str, manifest: ArtifactManifest, expected: _Expected
) -> dict[str, npt.NDArray[Any]]:
    path = directory / file
    content = _read_bytes(path)
    if file not in manifest.files:
        raise ArtifactError(f"{directory / MANIFEST} names no hash for {file}; the manifest is incomplete")
    found_hash = hashlib.sha256(content).hexdigest()
    if found_hash != manifest.files[file]:
        raise ArtifactError(
            f"{path} has SHA-256 {found_hash}, the manifest says {manifest.files[file]}; "
            "the file was altered or belongs to another model"
        )
    try:
        tensors = tensors_from_bytes(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} is no readable safetensors file: {error}") from error
    if set(tensors) != set(expected):
        raise ArtifactError(f"{path} holds tensors {sorted(tensors)}, the manifest implies {sorted(expected)}")
    for name, values in tensors.items():
        dtype, shape = expected[name]
        if values.dtype != dtype:
            raise ArtifactError(f"{path}: {name} is {values.dtype}, expected {dtype}")
        if values.shape != shape:
            raise ArtifactError(f"{path}: {name} has shape {values.shape}, the manifest implies {shape}")
    return dict(tensors)


def _check_grid(path: Path, name: str, values: Float32Array, bits: int, limit: float) -> None:
    fault = fx.off_grid(values, bits, limit)
    if fault is not None:
        raise ArtifactError(f"{path}: {name} {fault}; export the model again")
