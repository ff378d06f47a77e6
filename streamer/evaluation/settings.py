"""Reading the settings of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from schemas.errors import ConfigError
from schemas.evaluation import EvaluationSettings
from schemas.settings_files import laid_over, read_toml

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
    given = {} if path is None else read_toml(path, "evaluation settings")
    if training is not None:
        given = laid_over({"training": read_toml(training, "training settings")}, given)
    try:
        return EvaluationSettings.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"evaluation settings: {where}: {problem['msg']} (given: {problem['input']!r})") from None
