"""``trainer``: one model after the other, as events come."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group

from schemas.errors import UsageError
from schemas.settings_files import laid_over, read_toml
from streamer.cli._context import AsJson, Verbose, config, grid, progress_bar, show
from streamer.cli.learn import settings_errors

if TYPE_CHECKING:
    from streamer.trainer import TrainerProcess


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(trainer)


def trainer(
    events: Annotated[Path, typer.Option(help="Event log directory, which may grow.")],
    models: Annotated[Path, typer.Option(help="Directory of artifacts; the newest is gone on from.")],
    every: Annotated[
        float, typer.Option(min=0.001, help="Seconds of event time from one artifact to the next.")
    ] = 3_600.0,
    once: Annotated[bool, typer.Option("--once", help="One artifact of what is there now, then end.")] = False,
    keep: Annotated[int, typer.Option(min=1, help="Artifacts that stay.")] = 5,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="TOML with training settings; see `schema training`.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of each refresh.")] = None,
    curves: Annotated[Path | None, typer.Option(help="File to add the losses of each step to, JSON lines.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Follow an event log and publish the next artifact every so often: `run` with model.follow refreshes with it."""
    from streamer.trainer import Schedule, TrainerProcess  # noqa: PLC0415  # loads torch

    config(None, None, verbose)
    given = {} if settings_file is None else read_toml(settings_file, "training settings")
    if steps is not None:
        given = laid_over(given, {"refresh": {"steps": steps}})
    with progress_bar() as bar, settings_errors():
        task = bar.add_task("steps", total=None)
        schedule = Schedule(every, once, keep)
        process = TrainerProcess(
            events, models, schedule, given, curves, device, on_step=lambda n: bar.advance(task, n)
        )
        _stop_on_signals(process)
        process.run()
    if once and not process.published and not process.stopped.is_set():
        raise UsageError(f"{events} holds nothing that the newest artifact in {models} has not learned from")
    document = {
        "published": [
            {
                "artifact": str(path),
                **manifest.model_dump(mode="json", include={"name", "version", "metrics", "window"}),
            }
            for path, manifest in process.published
        ]
    }
    show(document, as_json, lambda: _table(document["published"]))


def _stop_on_signals(process: TrainerProcess) -> None:
    """The first SIGTERM or SIGINT ends it in good order, between two steps; the second at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if process.stopped.is_set():
            os._exit(128 + number)
        process.stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _table(rows: list[dict[str, Any]]) -> Group:
    out = grid(f"{len(rows)} artifacts", "artifact", "version", "engagements", right=("engagements",))
    for row in rows:
        out.add_row(row["artifact"], row["version"], str(row["window"]["engagements"]))
    return Group(out)
