"""``demo``, ``import``, ``train``: data in, a model out, and both at once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from schemas.errors import UsageError
from streamer.cli._context import AsJson, Verbose, config, progress_bar, show
from streamer.importers.globo import import_globo
from streamer.importers.movielens import import_movielens


class DataSet(StrEnum):
    """Public data sets with an importer."""

    MOVIELENS = "movielens"
    GLOBO = "globo"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("import")(import_)


def import_(
    data_set: Annotated[DataSet, typer.Argument(help="Which data set.")],
    src: Annotated[Path, typer.Argument(help="Its directory or file.")],
    out: Annotated[Path, typer.Argument(help="Event log directory to write.")],
    partitions: Annotated[int, typer.Option(min=1, help="Files per stream.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an event log that is there.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """A public data set to an event log."""
    config(None, None, verbose)
    if not src.exists():
        raise UsageError(f"{src} does not exist; give the {data_set} data set's directory or file")
    with progress_bar() as bar:
        task = bar.add_task("rows", total=None)
        convert = import_movielens if data_set is DataSet.MOVIELENS else import_globo
        report = convert(src, out, progress=lambda n: bar.advance(task, n), partitions=partitions, overwrite=overwrite)
    show(
        {name: getattr(report, name) for name in ("items", "updates", "engagements", "from_ms", "to_ms")},
        as_json,
        lambda: f"{report.items} items, {report.updates} updates, {report.engagements} engagements -> {out}",
    )
