"""``query``: retrieve, straight from the store or from published snapshots."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from indexer import report
from indexer.order import Order
from indexer.retrieval.readers import IndexReader
from indexer.retrieval.retrieve import fan_out
from indexer.retrieval.store_reader import StoreReader
from indexer.snapshots import SnapshotFollower
from indexer.store import now_ms
from schemas.config import Config, RetrievalConfig
from schemas.errors import NotFoundError, UsageError
from streamer.cli._context import AsJson, ConfigFile, DataDir, Verbose, config, grid, moment_ms, show
from streamer.generations import open_for_reading


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(query)


@contextmanager
def _readers(found: Config, wanted: RetrievalConfig, snapshots: str | None) -> Iterator[Mapping[int, IndexReader]]:
    """Shard number -> what answers."""
    if snapshots is None:
        with open_for_reading(found) as stores:
            yield {shard: StoreReader(store, Order.of(wanted)) for shard, store in stores.items()}
        return
    with tempfile.TemporaryDirectory(prefix="facetstream-snapshots-") as cache:
        follower = SnapshotFollower(snapshots, Path(cache))
        follower.refresh()
        yield follower.readers


def query(
    item: Annotated[list[str], typer.Option("--item", help="Trigger item; give several to mix interests.")],
    k: Annotated[int | None, typer.Option("-k", help="Results.", show_default="retrieval.k")] = None,
    indices: Annotated[int | None, typer.Option(help="Leaves to read.", show_default="retrieval.indices")] = None,
    multinomial: Annotated[bool, typer.Option("--multinomial", help="Draw the leaves by their votes.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the draw.")] = None,
    at: Annotated[
        str | None, typer.Option(help="Time at which engagements and ages count.", show_default="now")
    ] = None,
    snapshots: Annotated[
        str | None, typer.Option("--snapshots", help="Answer from the snapshots at this directory or fsspec URL.")
    ] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Items that go well with the trigger items; works while the daemon runs."""
    found = config(config_file, data_dir, verbose)
    overrides: dict[str, Any] = {"k": k, "indices": indices, "selection": "multinomial" if multinomial else None}
    given_ms = moment_ms("--at", at)
    when = now_ms() if given_ms is None else given_ms
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        wanted = RetrievalConfig.model_validate(found.retrieval.model_dump() | given)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} (given: {problem['input']})"
        ) from None
    with _readers(found, wanted, snapshots) as readers:
        reply = report.query_reply(item, fan_out(readers, item, wanted, when, seed))
    if len(reply.missing) == len(item):
        raise NotFoundError(f"none of the trigger items is in the index: {', '.join(reply.missing)}")

    def table() -> Table:
        title = (
            f"{len(reply.results)} of {reply.scored} scored in {len(reply.indices)} leaves, {reply.elapsed_ms:.1f} ms"
        )
        if reply.missing:
            title += f"; not in the index: {', '.join(reply.missing)}"
        out = grid(title, "item", "score", "facet", "leaf", right=("score", "facet", "leaf"))
        for row in reply.results:
            out.add_row(row.item_id, f"{row.score:.4f}", str(row.facet), str(row.leaf))
        return out

    show(reply, as_json, table)
