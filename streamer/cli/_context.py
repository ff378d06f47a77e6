"""What all commands share: common options, configuration, logging, printing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import orjson
import structlog
import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from schemas.config import Config, LogConfig
from schemas.errors import UsageError
from schemas.events import TimeMs
from schemas.settings import Settings, load_settings

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Configuration file, TOML.", show_default="facetstream.toml")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Holds the store and what belongs to it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log at level debug.")]
ModelDir = Annotated[Path | None, typer.Option("--model", help="Model artifact directory.")]

_PIPED_WIDTH = 160  # where the output is no terminal, nobody is served by lines cut at 80
out = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
err = Console(stderr=True, soft_wrap=not sys.stderr.isatty())


def settings(config_file: Path | None, data_dir: Path | None, verbose: bool, **flags: Any) -> Settings:
    """The configuration in force, with logging set up by it. ``flags`` use ``__`` for dots; None is not given."""
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    dotted |= {"data_dir": data_dir, "log.level": "debug" if verbose else None}
    found = load_settings(config_file, dotted)
    set_up_logging(found.config.log)
    return found


def config(config_file: Path | None, data_dir: Path | None, verbose: bool, **flags: Any) -> Config:
    """As :func:`settings`, the values alone."""
    return settings(config_file, data_dir, verbose, **flags).config


def set_up_logging(log: LogConfig) -> None:
    """Events with fields on stderr: readable on a terminal, JSON elsewhere."""
    console = log.format == "console" or (log.format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if console
        else structlog.processors.JSONRenderer(serializer=lambda event, **_: orjson.dumps(event, default=str).decode())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, log.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def show(reply: BaseModel | dict[str, Any], as_json: bool, table: Callable[[], RenderableType]) -> None:
    """Print a reply as JSON, or as the table it makes."""
    if as_json:
        document = reply.model_dump(mode="json", by_alias=True) if isinstance(reply, BaseModel) else reply
        sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        # What is printed comes from outside: brackets in it are no markup.
        out.print(table(), markup=False, highlight=False)


def moment_ms(option: str, value: str | None) -> int | None:
    """Epoch milliseconds of a time given as an option, in the form and the range of event times.

    Raises:
        UsageError: naming the option.
    """
    if value is None:
        return None
    try:
        return TypeAdapter(TimeMs).validate_python(int(value) if value.isdigit() else value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{option}: {problem} (given: {value})") from None


def progress_bar() -> Progress:
    """A progress bar on stderr; nothing where that is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )


class Grid(Table):
    """A plain table below a heading that may be wider than it, or stand alone. Cells are text, never markup."""

    heading: str = ""

    def add_row(self, *cells: RenderableType | None, **style: Any) -> None:
        """As rich's, with strings taken as they are: they come from outside."""
        super().add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), **style)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.heading)
        if self.columns:
            yield from super().__rich_console__(console, options)


def grid(heading: str, *columns: str, right: tuple[str, ...] = ()) -> Grid:
    """A table with these columns, some aligned to the right."""
    table = Grid(box=None, pad_edge=False, header_style="bold")
    table.heading = heading
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table
