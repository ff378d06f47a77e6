"""A directory of artifacts, one newer than the other: ``NAME-0001``, ``NAME-0002``, ...

The highest number is the newest. An artifact appears whole, by a rename; beside its files the newest has
``training.safetensors``, with which training goes on. What a killed process left half-written has a name that begins
with a dot, which nobody takes for an artifact; whoever publishes next removes it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from model_runtime import artifact as artifacts
from schemas.errors import ArtifactError

TRAINING: Final = "training.safetensors"
_NUMBERED: Final = re.compile(r"(?P<name>[^.].*)-(?P<number>\d{4,})")
_HALF_WRITTEN: Final = re.compile(r"\..+-\d{4,}-[^-]+")


def newest(directory: Path) -> Path | None:
    """The newest artifact of a directory; None where there is none, or no directory.

    Raises:
        ArtifactError: the directory cannot be read.
    """
    found = _numbered(directory)
    return found[-1][1] if found else None


def is_name(name: str) -> bool:
    """Whether artifacts of this name are found in their directory again."""
    return "/" not in name and _NUMBERED.fullmatch(f"{name}-0001") is not None


def next_place(directory: Path, name: str) -> Path:
    """Where the next artifact goes, as the newest.

    Raises:
        ArtifactError: the directory cannot be read.
    """
    return directory / f"{name}-{max((number for number, _ in _numbered(directory)), default=0) + 1:04d}"


def expire(directory: Path, keep: int) -> None:
    """Leave so many of the newest artifacts, and of those that are not the newest what training needs no more.

    Raises:
        ArtifactError: the directory cannot be read or written.
    """
    older = [path for _, path in _numbered(directory)[:-1]]
    try:
        for path in older:
            (path / TRAINING).unlink(missing_ok=True)  # three times as large as the artifact
        for path in older[: max(0, len(older) + 1 - keep)]:
            shutil.rmtree(path.rename(path.with_name(f".{path.name}-removed")))
    except OSError as error:
        raise ArtifactError(f"older artifacts in {directory} cannot be removed: {error}; check permissions") from error


def remove_half_written(directory: Path) -> None:
    """Remove what a publisher that was killed left; call it while there is no other.

    Raises:
        ArtifactError: the directory cannot be read or written.
    """
    try:
        for path in directory.iterdir() if directory.is_dir() else ():
            if _HALF_WRITTEN.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)
    except OSError as error:
        raise ArtifactError(f"{directory} cannot be tidied: {error}; check permissions") from error


def _numbered(directory: Path) -> list[tuple[int, Path]]:
    """(number, path) of the artifacts, ascending."""
    try:
        return sorted(
            (int(found["number"]), path)
            for path in (directory.iterdir() if directory.is_dir() else ())
            if (found := _NUMBERED.fullmatch(path.name)) and (path / artifacts.MANIFEST).is_file()
        )
    except OSError as error:
        raise ArtifactError(f"{directory} cannot be read: {error}; it should hold model artifacts") from error
