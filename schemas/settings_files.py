"""Settings as files hold them: TOML read, and one set of settings laid over another."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a file of settings.

    Args:
        path: the file.
        what: what it is, for the message of an error.

    Raises:
        ConfigError: it is missing, cannot be read or is no TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{what} {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{what} {path} cannot be read: {error}") from error


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Settings with those of ``above`` in place of those of ``below``, section by section.

    Args:
        below: keys to values; sections are mappings.
        above: the same; what it does not mention stays.
        section: dotted name of the section they are, with a dot at its end, for the message of an error.

    Raises:
        ConfigError: ``above`` has a section where ``below`` has a value.
    """
    merged = dict(below)
    for name, value in above.items():
        if not isinstance(value, dict) or name not in below:
            merged[name] = value
        elif isinstance(below[name], dict):
            merged[name] = laid_over(below[name], value, f"{section}{name}.")
        else:
            raise ConfigError(f"{section}{name} is both a value, {below[name]!r}, and a section, {value!r}; give one")
    return merged
