"""Reading the configuration: which value is in force, and where it comes from."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from pydantic import BaseModel, SecretStr, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from schemas.config import Config
from schemas.errors import ConfigError
from schemas.settings_files import read_toml

PREFIX: Final = "FACETSTREAM_"
FAILPOINTS_VARIABLE: Final = f"{PREFIX}FAILPOINTS"  # arms failures; no setting, so that no file can
DEFAULT_FILE: Final = Path("facetstream.toml")
_MASK: Final = "********"


class Setting(NamedTuple):
    """One key in force: its dotted name, value, origin (``flag``, ``environment``, a file, ``default``) and meaning."""

    key: str
    value: Any
    origin: str
    description: str


class Settings(NamedTuple):
    """The configuration and, for every key that is not a default, its origin."""

    config: Config
    origins: dict[str, str]

    def rows(self) -> Iterator[Setting]:
        """Every key in the order of the configuration's definition; secrets are masked."""
        for key, value, field in _leaves(self.config):
            shown = _MASK if isinstance(value, SecretStr) else value
            yield Setting(key, shown, self.origins.get(key, "default"), field.description or "")


def load_settings(
    file: Path | None = None, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Merge defaults, file, environment and flags, the later ones winning.

    Args:
        file: TOML; None takes ``facetstream.toml`` if there is one.
        flags: dotted key -> value; None values are not given.
        environment: defaults to this process's.

    Raises:
        ConfigError: an unknown key, a malformed value or file; names it, and where it stands.
    """
    environment = os.environ if environment is None else environment
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    fields = {key: field for key, _, field in _leaves(Config())}
    known = fields.keys()
    layers: list[tuple[str, dict[str, Any]]] = []
    path = file if file is not None else (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    if path is not None:
        layers.append((str(path), read_toml(path, "configuration file")))
    layers.append(("environment", _read_environment(environment, known)))
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    layers.append(("flag", _nest(given)))
    for origin, values in layers:
        for key, value in _flatten(values, known):
            if key not in known:
                raise ConfigError(f"{origin}: unknown key {key!r}{_suggest(key, known)}")
            origins[key] = origin
            _put(merged, key, value)
    try:
        return Settings(Config.model_validate(merged), origins)
    except ValidationError as error:
        raise _wrong_value(error, origins, fields) from None


def _wrong_value(error: ValidationError, origins: Mapping[str, str], fields: Mapping[str, FieldInfo]) -> ConfigError:
    """Names the key and where its value comes from; for a rule about several keys, all that were set."""
    problem = error.errors(include_url=False)[0]
    parts = [str(part) for part in problem["loc"]]
    message = problem["msg"].removeprefix("Value error, ")
    keys = [key for end in range(len(parts), 0, -1) if (key := ".".join(parts[:end])) in fields]
    if keys:
        shown = _MASK if SecretStr in get_args(fields[keys[0]].annotation) else problem["input"]
        return ConfigError(f"{origins.get(keys[0], 'default')}: {keys[0]}: {message} (given: {shown!r})")
    section = ".".join(parts)
    concerned = [key for key in sorted(origins) if not section or key.startswith(f"{section}.")]
    where = ", ".join(f"{key} from {origins[key]}" for key in concerned)
    return ConfigError(f"{section or 'configuration'}: {message} ({where})")


def _read_environment(environment: Mapping[str, str], known: Collection[str]) -> dict[str, Any]:
    names = {PREFIX + key.replace(".", "__").upper(): key for key in known}
    for name in environment:
        if name.startswith(PREFIX) and name not in names and name != FAILPOINTS_VARIABLE:
            near = _suggest(name.removeprefix(PREFIX).lower().replace("__", "."), known)
            raise ConfigError(f"environment: unknown variable {name}{near}")
    fields: dict[str, Any] = {name: (info.annotation, info) for name, info in Config.model_fields.items()}
    shape = create_model("_Environment", __base__=BaseSettings, **fields)
    shape.model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")
    source = EnvSettingsSource(shape, env_prefix=PREFIX, env_nested_delimiter="__", case_sensitive=False)
    source.env_vars = {name.lower(): value for name, value in environment.items() if name in names}
    try:
        return source()
    except SettingsError as error:
        raise ConfigError(f"environment: {error}") from error


def _leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, info


def _flatten(values: Mapping[str, Any], known: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in known:
            if not value and not any(k.startswith(f"{key}.") for k in known):
                yield key, value
            yield from _flatten(value, known, f"{key}.")
        else:
            yield key, value


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in flat.items():
        _put(out, key, value)
    return out


def _put(target: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = value


def _suggest(key: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "; see `facetstream config show` for all keys"
