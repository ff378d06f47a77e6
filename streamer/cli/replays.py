"""``replay``: bounded reading into a generation."""

from __future__ import annotations

from typing import Annotated

import typer

from schemas.config import Config
from schemas.errors import StoreError
from streamer.asking import running_daemon
from streamer.cli._context import AsJson, ConfigFile, DataDir, ModelDir, Verbose, progress_bar, show
from streamer.cli._source import Bootstrap, Events, Rate, source_config
from streamer.generations import current_generation, load_model, require_generation
from streamer.replay import Replayed, replay
from streamer.shards import Generation


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("replay")(replay_)


def replay_(
    start: Annotated[
        str | None,
        typer.Option(
            "--from", help="earliest, an offset, or a time (RFC 3339).", show_default="where the generation stands"
        ),
    ] = None,
    stop: Annotated[str, typer.Option("--to", help="latest, an offset, or a time; not itself included.")] = "latest",
    generation: Annotated[str | None, typer.Option(help="Generation.", show_default="the one in use")] = None,
    rate: Rate = None,
    events: Events = None,
    bootstrap: Bootstrap = None,
    model: ModelDir = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Read a part of the source into a generation and end; what it has already is passed over. Ask again to resume."""
    found = source_config(config_file, data_dir, verbose, events, bootstrap, model)
    name = generation or current_generation(found.data_dir)
    if generation is not None:
        require_generation(found.data_dir, generation)
    if name == current_generation(found.data_dir) and running_daemon(found.data_dir) is not None:
        raise StoreError(
            f"a daemon keeps generation {name} up to date here: it has applied, or will apply, each record once; "
            "stop it to replay into this generation, or give another --generation"
        )
    show_replayed(replay_into(found, name, start, stop, rate), name, as_json)


def replay_into(found: Config, name: str, start: str | None, stop: str, rate: float | None) -> Replayed:
    """Replay with a progress bar."""
    with progress_bar() as bar:
        task = bar.add_task(f"replay into {name}", total=None)
        return replay(
            found,
            Generation(name, load_model(found, name)),
            start=start,
            stop=stop,
            rate=rate,
            on_progress=lambda step: bar.advance(task, step.records),
        )


def show_replayed(done: Replayed, name: str, as_json: bool) -> None:
    """Print what a replay did."""
    document = {
        "generation": name,
        "applied": done.applied,
        "repeated": done.repeated,
        "dead_letters": done.letters,
        "seconds": round(done.seconds, 3),
        "records_per_second": round(done.per_second),
        "offsets": done.offsets,
    }
    show(
        document,
        as_json,
        lambda: (
            f"generation {name}: {done.applied} records applied, {done.letters} of them dead letters; {done.repeated} "
            f"were there already; {done.seconds:.1f} s ({done.per_second:.0f} records/s)"
        ),
    )
