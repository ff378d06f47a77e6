"""``snapshot``: publications of the index that other processes and machines answer from."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table

from indexer.snapshots import Publisher, target_at
from indexer.view import load_view
from schemas.config import Config
from schemas.errors import UsageError
from streamer.asking import ask_daemon, running_daemon
from streamer.cli._context import AsJson, ConfigFile, DataDir, Verbose, config, grid, show
from streamer.generations import load_model, open_for_reading
from streamer.publishing import listed, shown_all, url_of

Url = Annotated[str | None, typer.Option("--url", help="Directory or fsspec URL.", show_default="snapshots.url")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Publications of the index to answer from.", no_args_is_help=True)
    group.command("full")(full)
    group.command("delta")(delta)
    group.command("list")(list_)
    app.add_typer(group, name="snapshot")


def full(
    config_file: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    """Publish all shards as they are now, through the daemon when one runs, else from their stores."""
    found = config(config_file, data_dir, verbose)
    daemon = running_daemon(found.data_dir)
    reply = _from_stores(found) if daemon is None else ask_daemon(daemon, "/snapshot", {"kind": "full"})
    show(reply, as_json, lambda: _table(reply["snapshots"]))


def delta(
    config_file: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    """Have the daemon publish what changed since its last full snapshot; it begins with a full one."""
    found = config(config_file, data_dir, verbose)
    daemon = running_daemon(found.data_dir)
    if daemon is None:
        raise UsageError(
            f"no daemon runs on {found.data_dir}, and only a daemon has seen what changed; use `snapshot full`"
        )
    reply = ask_daemon(daemon, "/snapshot", {"kind": "delta"})
    show(reply, as_json, lambda: _table(reply["snapshots"]))


def list_(
    url: Url = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """The snapshots there are, oldest first; readers read the current ones."""
    found = config(config_file, data_dir, verbose)
    rows = listed(url or url_of(found))
    show({"snapshots": rows}, as_json, lambda: _table(rows))


def _from_stores(found: Config) -> dict[str, Any]:
    target, model = target_at(url_of(found)), load_model(found)
    with open_for_reading(found) as stores:
        publishers = [
            Publisher(load_view(store, model.codewords), shard, target, found.retrieval, found.snapshots.keep)
            for shard, store in stores.items()
        ]
        return shown_all([publisher.full() for publisher in publishers])


def _table(rows: list[dict[str, Any]]) -> Table:
    columns = ("shard", "kind", "taken at", "records", "items", "MB", "current", "snapshot")
    out = grid(f"{len(rows)} snapshots", *columns, right=("records", "items", "MB"))
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row["created_at_ms"] / 1_000))
        kind = row["kind"] if row["kind"] == "full" else f"delta {row['sequence']}"
        out.add_row(
            str(row["shard"]),
            kind,
            when,
            str(sum(row["offsets"].values())),
            str(row["items_live"]),
            f"{row['bytes'] / 1e6:.1f}",
            "yes" if row["current"] else "",
            row["snapshot"],
        )
    return out
