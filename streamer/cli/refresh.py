"""``refresh``: another model for the same items."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from indexer.store import Store, is_there, store_path
from schemas.config import Config
from schemas.refresh import Refreshed
from streamer.asking import ask_daemon, running_daemon
from streamer.cli._context import AsJson, ConfigFile, DataDir, Verbose, config, grid, progress_bar, show
from streamer.cli._promotion import wait_for_switch
from streamer.generations import current_generation, load_model, local_shards, open_for_reading, require_generation
from streamer.holding import held
from streamer.refreshing import coming, refreshed, switch_to


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(refresh)


def refresh(
    model: Annotated[Path, typer.Option("--model", help="The new model's artifact directory.")],
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Encode all live items anew with another model, as a generation that takes over; the old one stays to go back to.

    Through the daemon when one runs, which goes on meanwhile. What was interrupted is gone on with.
    """
    found = config(config_file, data_dir, verbose)
    before = current_generation(found.data_dir)
    require_generation(found.data_dir, before)  # before anything is made in a directory that is none of ours
    url = running_daemon(found.data_dir)
    if url is not None:
        name = str(ask_daemon(url, "/refresh", {"model": str(model.resolve())})["generation"])
        wait_for_switch(url, name)
    else:
        before, name = _refresh_here(found, model)
    done = None
    if local_shards(found.data_dir, name):
        with open_for_reading(found, name) as stores:
            done = refreshed(stores.values())
    document: dict[str, Any] = {"generation": name, "previous": before}
    document |= {} if done is None else done.model_dump(mode="json")
    show(document, as_json, lambda: _table(document, done))


def _refresh_here(found: Config, model: Path) -> tuple[str, str]:
    """The generation before, as nobody can change it meanwhile, and the new one."""
    from streamer.reencoding import image_path, make_of_image  # noqa: PLC0415  # loads torch, as the next one
    from streamer.shards import Generation  # noqa: PLC0415

    with held(found.data_dir):
        before = current_generation(found.data_dir)
        made = coming(found, Generation(before, load_model(found, before)), model)
        with progress_bar() as bar:
            task = bar.add_task("items encoded", total=None)
            for number in local_shards(found.data_dir, before):
                if is_there(store_path(found.data_dir, made.name, number)):
                    continue
                image = image_path(found, made.name, number)
                shutil.rmtree(image, ignore_errors=True)  # of a process that was killed here
                try:
                    with Store.open(store_path(found.data_dir, before, number)) as store:
                        store.checkpoint(image)
                    make_of_image(found, before, made, number, lambda n: bar.advance(task, n))
                finally:
                    shutil.rmtree(image, ignore_errors=True)  # where it failed, on a full disk for example
        switch_to(found.data_dir, made.name, before)
    return before, made.name


def _table(document: dict[str, Any], done: Refreshed | None) -> Table:
    heading = f"generation {document['generation']} is in use; was {document['previous']}"
    if done is not None:
        heading += f"; {done.items} items encoded anew"
    out = grid(heading, "facet", "codes changed", "similarity", "5th percentile")
    for number, facet in enumerate(() if done is None else done.facets):
        shown = ("-" if value is None else f"{value:.3f}" for value in (facet.similarity, facet.similarity_low))
        changed = "-" if facet.changed is None else f"{facet.changed:.1%}"
        out.add_row(str(number), changed, *shown)
    return out
