"""``config show`` and ``schema``."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from schemas import replies
from schemas.artifact import ArtifactManifest
from schemas.config import Config
from schemas.dead_letters import DeadLetter
from schemas.evaluation import EvaluationSettings
from schemas.events import event_json_schema
from schemas.queries import Question
from schemas.settings import Setting
from schemas.training import TrainingConfig
from streamer.cli._context import AsJson, ConfigFile, DataDir, Verbose, grid, settings, show

_NAMES = Literal["event", "config", "training", "evaluation", "artifact", "dead-letter", "query", "replies"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="The configuration in force.", no_args_is_help=True)
    group.command("show")(config_show)
    app.add_typer(group, name="config")
    app.command()(schema)


def config_show(
    toml: Annotated[bool, typer.Option("--toml", help="Print a configuration file with every key explained.")] = False,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Every key: its value, where the value comes from, and what it means. Secrets are masked."""
    rows = list(settings(config_file, data_dir, verbose).rows())
    if toml:
        sys.stdout.write(as_toml(rows))
        return

    def plain(value: Any) -> Any:
        return value if isinstance(value, bool | int | float | str | type(None)) else str(value)

    def table() -> Table:
        out = grid("Configuration", "key", "value", "origin", "meaning")
        for row in rows:
            out.add_row(row.key, str(row.value), row.origin, row.description)
        return out

    document = {
        row.key: {
            "value": list(row.value) if isinstance(row.value, tuple) else plain(row.value),
            "origin": row.origin,
            "description": row.description,
        }
        for row in rows
    }
    show(document, as_json, table)


def as_toml(rows: list[Setting]) -> str:
    """A configuration file: each key with its meaning; those at their default are commented out."""
    lines = ["# facetstream configuration. Precedence: flag > environment (FACETSTREAM_SECTION__KEY) > file > default."]
    section = ""
    for row in rows:
        head, _, key = row.key.rpartition(".")
        if head != section:
            section = head
            lines += ["", f"[{section}]"]
        value = row.value if isinstance(row.value, bool | int | float | str | tuple | type(None)) else str(row.value)
        written = json.dumps(list(value) if isinstance(value, tuple) else value)
        lines += textwrap.wrap(row.description, 110, initial_indent="# ", subsequent_indent="# ")
        unset = row.origin == "default" or value is None  # TOML has no null: a key without a value stays a comment
        lines.append(f"{'# ' if unset else ''}{key} = {'' if value is None else written}".rstrip())
    return "\n".join(lines) + "\n"


def schema(
    name: Annotated[_NAMES, typer.Argument(help="Which document.")] = "event",
) -> None:
    """Print the JSON Schema of what crosses a boundary."""
    documents: dict[str, Any] = {
        "config": Config,
        "training": TrainingConfig,
        "evaluation": EvaluationSettings,
        "artifact": ArtifactManifest,
        "dead-letter": DeadLetter,
        "query": Question,
    }
    if name == "event":
        found = event_json_schema()
    elif name == "replies":
        kinds = [kind for kind in vars(replies).values() if isinstance(kind, type) and issubclass(kind, replies.Reply)]
        found = {
            kind.__name__: kind.model_json_schema(mode="serialization") for kind in kinds if kind is not replies.Reply
        }
    else:
        found = documents[name].model_json_schema()
    show(found, as_json=True, table=lambda: "")
