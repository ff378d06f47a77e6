"""Reading commands: ``item``, ``leaf``, ``leaves``, ``stats``, ``lag``, ``verify``. All work while the daemon runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from indexer import report
from indexer.store import Store
from schemas.config import Config
from schemas.errors import DependencyError, UsageError
from schemas.replies import LagReply, LeavesReply, PartitionLag
from streamer.asking import ask_daemon, running_daemon
from streamer.cli._context import AsJson, ConfigFile, DataDir, ModelDir, Verbose, config, grid, show
from streamer.generations import current_generation, model_path, open_for_reading
from streamer.opening import open_source
from streamer.sources.kafka_partitions import read_lag
from streamer.verification import verify_shards


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (item, leaf, leaves, stats, lag, verify):
        app.command()(command)


def item(
    item_id: Annotated[str, typer.Argument(help="Item id.")],
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Where an item is: code and leaf in each facet, counters, source."""
    with open_for_reading(config(config_file, data_dir, verbose)) as stores:
        reply = report.item(stores, item_id)

    def table() -> Table:
        source = reply.source
        title = (
            f"{reply.item_id}: {reply.state}, ordinal {reply.ordinal}, "
            f"from {source.topic}-{source.partition}@{source.offset}, "
            f"shard {reply.shard}, engagements {reply.counters or 'none'}"
        )
        out = grid(title, "facet", "code", "raw", "leaf", right=("facet", "raw", "leaf"))
        for row in reply.facets:
            out.add_row(str(row.facet), str(tuple(row.code)), str(row.raw), str(row.leaf))
        return out

    show(reply, as_json, table)


def leaf(
    facet: Annotated[int, typer.Argument(help="Facet number.")],
    leaf_id: Annotated[int, typer.Argument(metavar="LEAF", help="Leaf id.")],
    shard: Annotated[int | None, typer.Option(help="Shard; needed where there are several.")] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """What a posting list holds."""
    with open_for_reading(config(config_file, data_dir, verbose)) as stores:
        number = _one_shard(stores, shard)
        reply = report.leaf(stores[number], facet, leaf_id, number)

    def table() -> Table:
        title = f"facet {facet} leaf {leaf_id}: {reply.size} items, {reply.state}, {reply.raw_indices} raw indices"
        out = grid(title, "item", "ordinal", right=("ordinal",))
        for member in reply.items:
            out.add_row(member.item_id, str(member.ordinal))
        return out

    show(reply, as_json, table)


def leaves(
    facet: Annotated[int | None, typer.Option(help="Only this facet.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """The largest posting lists."""
    with open_for_reading(config(config_file, data_dir, verbose)) as stores:
        rows = report.leaves(stores, facet, top)

    def table() -> Table:
        out = grid(
            "Largest leaves", "shard", "facet", "leaf", "size", "state", right=("shard", "facet", "leaf", "size")
        )
        for row in rows:
            out.add_row(str(row.shard), str(row.facet), str(row.leaf), str(row.size), row.state)
        return out

    show(LeavesReply(leaves=rows), as_json, table)


def stats(
    config_file: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    """Counts and health of the index."""
    found = config(config_file, data_dir, verbose)
    with open_for_reading(found) as stores:
        reply = report.stats(stores).model_copy(update={"daemon": _daemon_rows(found)})

    def table() -> Table:
        items, engagements = reply.items, reply.engagements
        title = (
            f"generation {reply.generation}, model {reply.model_hash}\n"
            f"items {items.live} live, {items.deleted} deleted, {items.stale} stale events\n"
            f"engagements {engagements.applied} applied, {engagements.pending} pending, {engagements.duplicate} "
            f"dropped as duplicates\n"
            f"shards here {', '.join(map(str, reply.shards))}{_progress(reply.daemon)}\n"
            f"dead letters {reply.dead_letters}; records lost at the source {reply.records_lost}\n"
            f"splits {reply.splits}, merges {reply.merges}; "
            f"disk {reply.disk_bytes / 1e6:.1f} MB\n"
            f"offsets {reply.offsets}"
        )
        columns = (
            "facet",
            "leaves",
            "items",
            "bounds",
            "min",
            "p50",
            "p90",
            "p99",
            "max",
            "within",
            "marked",
            "codes used",
        )
        out = grid(title, *columns, right=columns)
        for row in reply.facets:
            size = row.size
            numbers = (size.min, size.p50, size.p90, size.p99, size.max)
            out.add_row(
                str(row.facet),
                str(row.leaves),
                str(row.items),
                f"{row.bounds[0]}-{row.bounds[1]}",
                *map(str, numbers),
                f"{row.within_bounds_share:.1%}",
                str(row.marked),
                f"{row.raw_active_share:.1%}",
            )
        return out

    show(reply, as_json, table)


def lag(
    events: Annotated[Path | None, typer.Option(help="Event log, when that is the source.")] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """How far the store is behind the source's end."""
    found = config(
        config_file, data_dir, verbose, source__path=events, source__kind="eventlog" if events is not None else None
    )
    with open_for_reading(found) as stores:
        stored = {name: at for store in stores.values() for name, at in store.offsets().items()}
    rows = _lag_rows(found, stored)
    reply = LagReply(lag=sum(row.lag for row in rows), partitions=rows, daemon=_daemon_rows(found))

    def table() -> Table:
        columns = ("partition", "stored", "end", "lag", "committed")
        out = grid(f"{reply.lag} records behind{_progress(reply.daemon)}", *columns, right=columns[1:])
        for row in rows:
            committed = "-" if row.committed is None else str(row.committed)
            out.add_row(row.partition, str(row.stored), str(row.end), str(row.lag), committed)
        return out

    show(reply, as_json, table)


def _lag_rows(found: Config, stored: dict[str, int]) -> list[PartitionLag]:
    if found.source.kind == "kafka":
        ends = {str(row.partition): (row.end, row.committed) for row in read_lag(found)}
    else:
        source = open_source(found, follow=False)
        try:
            ends = {str(partition): (end, None) for partition, end in source.end_offsets().items()}
        finally:
            source.close()
    for name, offset in sorted(stored.items()):
        if name not in ends or ends[name][0] < offset:
            there = f"ends at {ends[name][0]}" if name in ends else "is not there"
            raise DependencyError(
                f"the store has applied {name} up to offset {offset}, but at the source that partition {there}: "
                "is this the source the store was built from, and was it cut or replaced?"
            )
    rows = []
    for name, (end, committed) in sorted(ends.items()):
        at = stored.get(name, committed or 0)  # a shard that another process owns shows what it committed
        rows.append(PartitionLag(partition=name, stored=at, end=end, lag=max(0, end - at), committed=committed))
    return rows


def _daemon_rows(found: Config) -> list[dict[str, Any]] | None:
    """What a daemon here says of its shards; None where none runs."""
    url = running_daemon(found.data_dir)
    if url is None:
        return None
    names = ("shard", "state", "alive", "progressing", "stuck", "seconds_since_batch")
    return [{name: row.get(name) for name in names} for row in ask_daemon(url, "/status")["shards"]]


def _progress(rows: list[dict[str, Any]] | None) -> str:
    if rows is None:
        return "; no daemon runs here"
    troubles = [f"shard {row['shard']} is stuck: {row['stuck']}" for row in rows if row["stuck"]]
    troubles += [f"shard {row['shard']} does not turn" for row in rows if row["alive"] is False]
    return "; ".join(["", *troubles]) if troubles else "; the daemon makes progress"


def _one_shard(stores: Mapping[int, Store], shard: int | None) -> int:
    if shard is None and len(stores) == 1:
        return next(iter(stores))
    if shard is None or shard not in stores:
        raise UsageError(f"leaf ids are a shard's own: give --shard with one of {', '.join(map(str, sorted(stores)))}")
    return shard


def verify(
    model: ModelDir = None,
    sample: Annotated[int, typer.Option(min=0, help="Items encoded again for I7.")] = 1_000,
    allow_unbalanced: Annotated[
        bool | None,
        typer.Option(
            "--allow-unbalanced/--strict",
            help="Whether leaves out of bounds may wait for the compactor.",
            show_default="while a daemon runs",
        ),
    ] = None,
    generation: Annotated[str | None, typer.Option(help="Generation.", show_default="the one in use")] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check invariants I1 to I7; exits 1 if one is violated."""
    found = config(config_file, data_dir, verbose)
    own = model_path(found.data_dir, generation or current_generation(found.data_dir))
    from model_runtime.runtime import FrozenModel  # noqa: PLC0415  # loads torch, which the other commands do without

    artifact = FrozenModel.load(model if model is not None else own) if model is not None or own.exists() else None
    lenient = running_daemon(found.data_dir) is not None if allow_unbalanced is None else allow_unbalanced
    with open_for_reading(found, generation) as stores:
        reply = verify_shards(stores, artifact, sample=sample, allow_unbalanced=lenient)

    def table() -> Table:
        checked = reply.checked
        title = (
            f"{'ok' if reply.ok else f'{reply.violations_total} VIOLATIONS'}: {checked.items} items, "
            f"{checked.postings} postings, {checked.leaves} leaves, {checked.routes} routes, "
            f"{checked.reencoded} encoded again, {checked.awaiting} leaves await the compactor"
        )
        notes = list(reply.notes)
        if reply.violations and all(violation.invariant == "I4" for violation in reply.violations):
            notes.append("only sizes: the compactor was stopped before it was done; run `facetstream compact`")
        out = grid("\n".join([title, *notes]), *(("invariant", "violation") if reply.violations else ()))
        for violation in reply.violations:
            out.add_row(violation.invariant, violation.detail)
        return out

    show(reply, as_json, table)
    if not reply.ok:
        raise typer.Exit(1)
