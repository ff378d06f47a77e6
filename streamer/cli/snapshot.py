"""``snapshot``: publications of the index that other processes and machines answer from."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from indexer.loading import load_view
from indexer.order import Order
from indexer.snapshots import Publisher, SnapshotFollower, target_at
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
    _publish(config(config_file, data_dir, verbose), "full", _from_stores, as_json)


def delta(
    config_file: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    """Publish what changed since the last full snapshot, as ``full`` does; a daemon begins with a full one."""
    _publish(config(config_file, data_dir, verbose), "delta", _delta_from_stores, as_json)


def _publish(found: Config, kind: str, from_stores: Callable[[Config], dict[str, Any]], as_json: bool) -> None:
    daemon = running_daemon(found.data_dir)
    reply = from_stores(found) if daemon is None else ask_daemon(daemon, "/snapshot", {"kind": kind})
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
    with _publishers(found) as publishers:
        return shown_all([publisher.full() for publisher in publishers.values()])


def _delta_from_stores(found: Config) -> dict[str, Any]:
    with _publishers(found) as publishers, tempfile.TemporaryDirectory(prefix="facetstream-snapshots-") as cache:
        follower = SnapshotFollower(url_of(found), Path(cache))
        follower.refresh()
        for shard, publisher in publishers.items():
            if shard not in follower.readers:
                raise UsageError(f"nothing is published of shard {shard} yet; begin with `snapshot full`")
            publisher.go_on(follower.readers[shard])
        return shown_all([publisher.delta() for publisher in publishers.values()])


@contextmanager
def _publishers(found: Config) -> Iterator[dict[int, Publisher]]:
    """Of the shards here, as their stores are."""
    target, model, order = target_at(url_of(found)), load_model(found), Order.of(found.retrieval)
    with open_for_reading(found) as stores:
        yield {
            shard: Publisher(load_view(store, model.codewords, order), shard, target, found.snapshots.keep)
            for shard, store in stores.items()
        }


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
