"""Reading the settings of an evaluation."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from schemas.errors import ConfigError
from schemas.evaluation import EvaluationSettings

if TYPE_CHECKING:
    from pathlib import Path


def load_settings(path: Path | None, training: Path | None = None) -> EvaluationSettings:
    """Read TOML files; defaults without them.

    Args:
        path: of an evaluation.
        training: settings as ``facetstream train --settings`` takes them; the section ``training`` overrides them.

    Raises:
        ConfigError: naming the key that is wrong.
    """
    given = _toml(path)
    if training is not None:
        given["training"] = _toml(training) | given.get("training", {})
    try:
        return EvaluationSettings.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"evaluation settings: {where}: {problem['msg']} (given: {problem['input']!r})") from None


def _toml(path: Path | None) -> dict[str, Any]:
    try:
        return {} if path is None else tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"settings {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"settings {path}: {error}") from error
