"""Reading commands: ``item``, ``leaf``, ``leaves``, ``stats``, ``lag``, ``verify``. All work while the daemon runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from indexer import report
from indexer.verify import verify as verify_store
from schemas.config import Config
from schemas.errors import DependencyError
from schemas.replies import LagReply, LeavesReply, PartitionLag
from streamer.cli._context import AsJson, ConfigFile, DataDir, ModelDir, Verbose, config, grid, show
from streamer.daemon import open_source, running_daemon
from streamer.generations import current_generation, model_path, open_for_reading, reencoder, store_meta
from streamer.sources.kafka import read_lag


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
    with open_for_reading(config(config_file, data_dir, verbose)) as store:
        reply = report.item(store, item_id)

    def table() -> Table:
        source = reply.source
        title = (
            f"{reply.item_id}: {reply.state}, ordinal {reply.ordinal}, "
            f"from {source.topic}-{source.partition}@{source.offset}, "
            f"engagements {reply.counters or 'none'}"
        )
        out = grid(title, "facet", "code", "raw", "leaf", right=("facet", "raw", "leaf"))
        for row in reply.facets:
            out.add_row(str(row.facet), str(tuple(row.code)), str(row.raw), str(row.leaf))
        return out

    show(reply, as_json, table)


def leaf(
    facet: Annotated[int, typer.Argument(help="Facet number.")],
    leaf_id: Annotated[int, typer.Argument(metavar="LEAF", help="Leaf id.")],
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """What a posting list holds."""
    with open_for_reading(config(config_file, data_dir, verbose)) as store:
        reply = report.leaf(store, facet, leaf_id)

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
    with open_for_reading(config(config_file, data_dir, verbose)) as store:
        rows = report.leaves(store, facet, top)

    def table() -> Table:
        out = grid("Largest leaves", "facet", "leaf", "size", "state", right=("facet", "leaf", "size"))
        for row in rows:
            out.add_row(str(row.facet), str(row.leaf), str(row.size), row.state)
        return out

    show(LeavesReply(leaves=rows), as_json, table)


def stats(
    config_file: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    """Counts and health of the index."""
    with open_for_reading(config(config_file, data_dir, verbose)) as store:
        reply = report.stats(store)

    def table() -> Table:
        items, engagements = reply.items, reply.engagements
        title = (
            f"generation {reply.generation}, model {reply.model_hash}\n"
            f"items {items.live} live, {items.deleted} deleted, {items.stale} stale events\n"
            f"engagements {engagements.applied} applied, {engagements.pending} pending\n"
            f"dead letters {reply.dead_letters}; splits {reply.splits}, merges {reply.merges}; "
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
    with open_for_reading(found) as store:
        stored = store.offsets()
    rows = _lag_rows(found, stored)
    reply = LagReply(lag=sum(row.lag for row in rows), partitions=rows)

    def table() -> Table:
        columns = ("partition", "stored", "end", "lag", "committed")
        out = grid(f"{reply.lag} records behind", *columns, right=columns[1:])
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
    return [
        PartitionLag(
            partition=name,
            stored=stored.get(name, 0),
            end=end,
            lag=max(0, end - stored.get(name, 0)),
            committed=committed,
        )
        for name, (end, committed) in sorted(ends.items())
    ]


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
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check invariants I1 to I7; exits 1 if one is violated."""
    found = config(config_file, data_dir, verbose)
    own = model_path(found.data_dir, current_generation(found.data_dir))
    from model_runtime.runtime import FrozenModel  # noqa: PLC0415  # loads torch, which the other commands do without

    artifact = FrozenModel.load(model if model is not None else own) if model is not None or own.exists() else None
    lenient = running_daemon(found.data_dir) is not None if allow_unbalanced is None else allow_unbalanced
    with open_for_reading(found) as store:
        meta = store.meta()
        reply = verify_store(
            store,
            expected=None if artifact is None else store_meta(artifact.manifest, meta.generation, meta.half_lives_s),
            reencode=None if artifact is None else reencoder(artifact),
            sample=sample,
            allow_unbalanced=lenient,
        )

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
