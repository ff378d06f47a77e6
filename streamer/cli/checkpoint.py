"""``checkpoint``: copies of the shards, to go on from."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.table import Table

from indexer import checkpoints
from indexer.durable import sync_path
from indexer.store import Store, store_path
from schemas.errors import NotFoundError, StoreError, StoreLockedError
from streamer.asking import ask_daemon, running_daemon
from streamer.checkpointing import shown, target_of
from streamer.cli._context import AsJson, ConfigFile, DataDir, ModelDir, Verbose, config, grid, show
from streamer.generations import (
    current_generation,
    load_model,
    local_shards,
    make_generation,
    open_for_reading,
    own_shard,
)
from streamer.verification import verify_shards

log = structlog.get_logger(__name__)

Url = Annotated[str | None, typer.Option("--url", help="Directory or fsspec URL.", show_default="checkpoints.url")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Copies of the shards, to go on from.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_)
    group.command("restore")(restore)
    app.add_typer(group, name="checkpoint")


def create(
    url: Url = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Copy the shards here as they are now, through the daemon when one runs; older copies than are kept go."""
    found = config(config_file, data_dir, verbose)
    daemon = running_daemon(found.data_dir)
    target = target_of(found, url)
    if daemon is not None:
        rows = ask_daemon(daemon, "/checkpoint", {"url": None if url is None else str(target)})["checkpoints"]
    else:
        rows = []
        name = current_generation(found.data_dir)
        for shard in local_shards(found.data_dir, name) or [0]:
            with Store.open(store_path(found.data_dir, name, shard)) as store:
                rows.append(shown(checkpoints.create(store, shard, target), target))
            checkpoints.expire(target, found.checkpoints.keep, model_hash=rows[-1]["model_hash"], shard=shard)
    show({"checkpoints": rows}, as_json, lambda: _table(rows))


def list_(
    url: Url = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """The checkpoints there are, those that reach furthest first."""
    found = config(config_file, data_dir, verbose)
    target = target_of(found, url)
    rows = [shown(info, target) for info in checkpoints.list_(target)]
    show({"checkpoints": rows}, as_json, lambda: _table(rows))


def restore(
    shard: Annotated[int | None, typer.Option(help="Only this shard.", show_default="all there are")] = None,
    url: Url = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move a store that is there aside (to NAME.replaced-TIME).")
    ] = False,
    model: ModelDir = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Bring the newest checkpoint of each shard here and verify it; the daemon reads on from there."""
    found = config(config_file, data_dir, verbose, model__path=model)
    if running_daemon(found.data_dir) is not None:
        raise StoreError(f"a daemon runs on {found.data_dir}; stop it before restoring")
    target, artifact = target_of(found, url), load_model(found)
    name, wanted = current_generation(found.data_dir), artifact.manifest.model_hash
    shards = sorted({info.shard for info in checkpoints.list_(target, model_hash=wanted)} if shard is None else {shard})
    if not shards:
        raise NotFoundError(f"{target} holds no checkpoint for model {wanted[:12]}")
    newest = {number: checkpoints.newest(target, model_hash=wanted, shard=number) for number in shards}
    rows = []
    for number, info in newest.items():
        if info is None:
            raise NotFoundError(f"{target} holds no checkpoint of shard {number} for model {wanted[:12]}")
        make_generation(found.data_dir, name, artifact)
        path = store_path(found.data_dir, name, number)
        if replace:
            _replace(path, target, info)
        else:
            checkpoints.restore(target, info, path)
        own_shard(found.data_dir, name, number)
        rows.append(shown(info, target))
    with open_for_reading(found) as stores:
        reply = verify_shards(stores, artifact, allow_unbalanced=True)
    if not reply.ok:
        raise StoreError(f"what was restored is not sound: {reply.violations[0].detail}; see `facetstream verify`")
    show({"restored": rows}, as_json, lambda: _table(rows))


def _replace(path: Path, target: checkpoints.CheckpointTarget, info: checkpoints.CheckpointInfo) -> None:
    """Restore beside the store that may be there, and put it in its place when all is here."""
    try:
        if path.exists():
            Store.open(path).close()
    except StoreLockedError:
        raise
    except StoreError as error:  # a damaged one is what most are replaced for
        log.warning("replaced_store_is_damaged", store=str(path), error=str(error))
    beside = path.with_name(f".{path.name}.restored")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed here
    checkpoints.restore(target, info, beside)
    try:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.replaced-{time.time_ns() // 1_000_000}"))
        beside.rename(path)
        sync_path(path.parent)
    except OSError as error:
        raise StoreError(f"cannot put {beside} in the place of {path}: {error}; rename it yourself") from error


def _table(rows: list[dict[str, Any]]) -> Table:
    out = grid(f"{len(rows)} checkpoints", "shard", "taken at", "records", "MB", "checkpoint", right=("records", "MB"))
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row["created_at_ms"] / 1_000))
        records = str(sum(row["offsets"].values()))
        out.add_row(str(row["shard"]), when, records, f"{row['bytes'] / 1e6:.1f}", row["checkpoint"])
    return out
