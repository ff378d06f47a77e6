"""``generation``: index versions, side by side."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from schemas.config import Config
from schemas.errors import NotFoundError, StoreError, UsageError
from streamer.asking import ask_daemon, running_daemon
from streamer.cli._context import AsJson, ConfigFile, DataDir, Verbose, config, grid, show
from streamer.cli._promotion import wait_for_switch
from streamer.cli._source import Bootstrap, Events, Rate, source_config
from streamer.cli.replays import replay_into, show_replayed
from streamer.generations import (
    Pointer,
    drop_generation,
    generations,
    local_shards,
    make_generation,
    model_path,
    next_name,
    open_for_reading,
    pointer,
    require_generation,
)
from streamer.holding import held
from streamer.refreshing import refreshed, switch_to

Name = Annotated[str, typer.Argument(help="Generation.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Index versions: build one beside the live one, switch, go back.", no_args_is_help=True)
    group.command("list")(list_)
    group.command("create")(create)
    group.command("promote")(promote)
    group.command("rollback")(rollback)
    group.command("drop")(drop)
    app.add_typer(group, name="generation")


def list_(
    config_file: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    """All generations here: which one is in use, their models, how far they are."""
    found = config(config_file, data_dir, verbose)
    at = pointer(found.data_dir)
    rows = [_described(found, name) for name in generations(found.data_dir)]
    for row in rows:
        name = row["generation"]
        row["role"] = "current" if name == at.current else "previous" if name == at.previous else ""

    def table() -> Table:
        out = grid(
            f"{len(rows)} generations",
            "generation",
            "role",
            "model",
            "shards",
            "items",
            "records applied",
            "codes changed",
        )
        for row in rows:
            shards = ",".join(map(str, row["shards"])) or "none"
            applied = str(sum(row["offsets"].values()))
            facets = [] if row["refreshed"] is None else row["refreshed"]["facets"]
            known = [facet["changed"] for facet in facets if facet["changed"] is not None]
            changed = " ".join(f"{share:.0%}" for share in known)
            items = str(row["items_live"])
            out.add_row(row["generation"], row["role"], row["model_hash"][:12], shards, items, applied, changed)
        return out

    show({"current": at.current, "previous": at.previous, "generations": rows}, as_json, table)


def _described(found: Config, name: str) -> dict[str, Any]:
    from model_runtime.artifact import read_manifest  # noqa: PLC0415  # loads torch's tensors library

    own = model_path(found.data_dir, name)
    model_hash = read_manifest(own).model_hash if own.exists() else ""
    row: dict[str, Any] = {"generation": name, "model_hash": model_hash, "shards": local_shards(found.data_dir, name)}
    row |= {"items_live": 0, "offsets": {}, "refreshed": None}
    if row["shards"]:
        with open_for_reading(found, name) as stores:
            row["items_live"] = sum(store.totals().items_live for store in stores.values())
            row["offsets"] = {key: at for store in stores.values() for key, at in store.offsets().items()}
            done = refreshed(stores.values())
            row["refreshed"] = None if done is None else done.model_dump(mode="json")
    return row


def create(
    name: Annotated[str | None, typer.Option(help="Name.", show_default="the next number")] = None,
    build: Annotated[
        bool, typer.Option("--build/--no-build", help="Read the source from its start, to its present end.")
    ] = True,
    rate: Rate = None,
    events: Events = None,
    bootstrap: Bootstrap = None,
    model: Annotated[Path | None, typer.Option("--model", help="Model artifact of the new generation.")] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Build an index with another model beside the live one, which goes on. Then `generation promote`."""
    if model is None:
        raise UsageError("give --model DIRECTORY: the artifact that the new generation is built with")
    found = source_config(config_file, data_dir, verbose, events, bootstrap, None)
    from model_runtime.runtime import FrozenModel  # noqa: PLC0415  # loads torch, which reading commands do without

    chosen = name or next_name(found.data_dir)
    if chosen in generations(found.data_dir):
        raise UsageError(
            f"generation {chosen} is there already; `facetstream replay --generation {chosen}` goes on building it"
        )
    make_generation(found.data_dir, chosen, FrozenModel.load(model, found.model.device, found.model.threads))
    if build:
        show_replayed(replay_into(found, chosen, None, "latest", rate), chosen, as_json)
    else:
        show({"generation": chosen}, as_json, lambda: f"generation {chosen} made, empty")


def promote(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Even if it is behind the one in use.")] = False,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make a generation the one in use; a running daemon lets it catch up first."""
    found = config(config_file, data_dir, verbose)
    at = _in_use_beside(found, name)
    url = running_daemon(found.data_dir)
    if url is not None:
        ask_daemon(url, "/promote", {"generation": name})
        wait_for_switch(url, name)
    else:
        with held(found.data_dir):  # no daemon starts meanwhile
            at = _in_use_beside(found, name)
            if not force:
                _check_not_behind(found, name, at.current)
            _check_not_ahead(found, name, at.current)
            switch_to(found.data_dir, name, at.current)
    show({"current": name, "previous": at.current}, as_json, lambda: f"generation {name} is in use; was {at.current}")


def rollback(
    config_file: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    """Go back to the generation before; a daemon lets it catch up with what came since."""
    found = config(config_file, data_dir, verbose)
    at = pointer(found.data_dir)
    if at.previous is None or at.previous not in generations(found.data_dir):
        raise NotFoundError(f"there is no generation before {at.current} to go back to")
    promote(at.previous, True, config_file, data_dir, as_json, verbose)


def drop(
    name: Name,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Remove a generation that is not in use, and free its disk space."""
    found = config(config_file, data_dir, verbose)
    url = running_daemon(found.data_dir)
    promotion = None if url is None else ask_daemon(url, "/status")["promotion"]
    if promotion is not None and promotion["generation"] == name and promotion["state"] not in {"done", "failed"}:
        raise UsageError(f"generation {name} is being promoted; wait for it, or stop the daemon")
    require_generation(found.data_dir, name)
    with nullcontext() if url is not None else held(found.data_dir):  # nobody starts with it meanwhile
        freed = drop_generation(found.data_dir, name)
    show({"dropped": name, "bytes": freed}, as_json, lambda: f"generation {name} dropped, {freed / 1e6:.1f} MB freed")


def _in_use_beside(found: Config, name: str) -> Pointer:
    """What is in use, which must not be this generation, and this one must be there."""
    require_generation(found.data_dir, name)
    at = pointer(found.data_dir)
    if name == at.current:
        raise UsageError(f"generation {name} is in use already")
    return at


def _offsets(found: Config, generation: str) -> dict[str, int]:
    with open_for_reading(found, generation) as stores:
        return {key: offset for store in stores.values() for key, offset in store.offsets().items()}


def _check_not_behind(found: Config, name: str, current: str) -> None:
    """Refuse a generation that has applied less than the one in use."""
    stored = _offsets(found, name)
    behind = {key: offset - stored.get(key, 0) for key, offset in _offsets(found, current).items()}
    behind = {key: records for key, records in behind.items() if records > 0}
    if behind:
        raise StoreError(
            f"generation {name} is {sum(behind.values())} records behind {current} ({', '.join(sorted(behind))}); run "
            f"`facetstream replay --generation {name}`, promote it through a running daemon, or give --force"
        )


def _check_not_ahead(found: Config, name: str, current: str) -> None:
    """Refuse a generation that has applied more than the one in use: while it was built aside it sent no letters."""
    if found.source.kind != "kafka":
        return  # letters in a file are a generation's own
    stored = _offsets(found, current)
    ahead = sum(max(0, offset - stored.get(key, 0)) for key, offset in _offsets(found, name).items())
    if ahead:
        raise StoreError(
            f"generation {name} is {ahead} records ahead of {current}, which has not sent their dead letters to topic "
            f"{found.kafka.dead_letters_topic!r} yet; let {current} catch up first (`facetstream replay`), or promote "
            "through a running daemon"
        )
