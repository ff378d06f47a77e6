"""Options that choose the source, shared by commands that read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.config import Config
from streamer.cli._context import config

Events = Annotated[Path | None, typer.Option(help="Read this event log instead of Kafka.")]
Bootstrap = Annotated[str | None, typer.Option("--bootstrap", help="Kafka brokers, host:port.")]
Rate = Annotated[float | None, typer.Option(min=1, help="Records per second at most.")]


def source_config(
    config_file: Path | None,
    data_dir: Path | None,
    verbose: bool,
    events: Path | None,
    bootstrap: str | None,
    model: Path | None,
) -> Config:
    """The configuration in force, with the source that the options name."""
    return config(
        config_file,
        data_dir,
        verbose,
        source__kind="eventlog" if events is not None else None,
        source__path=events,
        kafka__bootstrap_servers=bootstrap,
        model__path=model,
    )
