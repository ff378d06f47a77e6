"""``run``, ``produce``, ``compact``: events into the index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from indexer.rebalance.compactor import Round
from schemas.config import Config
from streamer.asking import ask_daemon, running_daemon
from streamer.cli._context import AsJson, ConfigFile, DataDir, ModelDir, Verbose, config, progress_bar, show
from streamer.daemon import run_daemon
from streamer.eventlog_format import discover
from streamer.generations import current_generation, load_model, local_shards, open_index
from streamer.positions import parse_resets
from streamer.produce import produce_event_log
from streamer.sources.eventlog import EventLogSource

Source = Literal["kafka", "eventlog"]
Bootstrap = Annotated[str | None, typer.Option("--bootstrap", help="Kafka brokers, host:port.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (run, produce, compact):
        app.command()(command)


def run(
    events: Annotated[Path | None, typer.Option(help="Read this event log instead of Kafka.")] = None,
    model: ModelDir = None,
    bootstrap: Bootstrap = None,
    until_end: Annotated[bool, typer.Option("--until-end", help="Stop at the source's present end.")] = False,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 picks a free one.")] = None,
    reset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PARTITION=WHERE",
            help="Go on there whatever the store says: earliest, latest or an offset. What is indexed stays.",
        ),
    ] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    verbose: Verbose = False,
) -> None:
    """The daemon: follow the source, keep the index alive, rebalance, answer HTTP."""
    found = config(
        config_file,
        data_dir,
        verbose,
        source__kind="eventlog" if events is not None else None,
        source__path=events,
        model__path=model,
        kafka__bootstrap_servers=bootstrap,
        http__port=port,
    )
    resets = parse_resets(reset or [])
    with progress_bar() as bar:
        task = bar.add_task("records", total=None, visible=until_end)
        run_daemon(found, to_end=until_end, resets=resets, on_progress=lambda step: bar.advance(task, step.records))


def produce(
    events: Annotated[Path, typer.Option(help="Event log directory.")],
    rate: Annotated[float | None, typer.Option(help="Records per second at most.")] = None,
    bootstrap: Bootstrap = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Event log to Kafka topics, in event time order."""
    found = config(config_file, None, verbose, kafka__bootstrap_servers=bootstrap)
    discover(events)
    source = EventLogSource(events)
    total = sum(source.end_offsets().values())
    source.close()
    with progress_bar() as bar:
        task = bar.add_task("produced", total=total)
        counts = produce_event_log(events, found, rate=rate, progress=lambda n: bar.advance(task, n))
    document = {
        "items": counts.items,
        "engagements": counts.engagements,
        "seconds": round(counts.seconds, 3),
        "records_per_second": round((counts.items + counts.engagements) / max(counts.seconds, 1e-9)),
    }
    show(
        document,
        as_json,
        lambda: (
            f"{counts.items} item events and {counts.engagements} engagements in {counts.seconds:.1f} s "
            f"({document['records_per_second']} records/s)"
        ),
    )


def compact(
    model: ModelDir = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Rebalance until every leaf is within bounds or marked; through the daemon when one runs."""
    found = config(config_file, data_dir, verbose, model__path=model)
    url = running_daemon(found.data_dir)
    document = ask_daemon(url, "/compact", {}) if url is not None else _compact_here(found)
    show(
        document,
        as_json,
        lambda: (
            f"{document['splits']} splits, {document['merges']} merges, {document['marks']} marks, "
            f"{document['moved']} members moved"
        ),
    )


def _compact_here(found: Config) -> dict[str, int]:
    artifact, done = load_model(found), Round()
    shards = local_shards(found.data_dir, current_generation(found.data_dir)) or [0]
    with progress_bar() as bar:
        task = bar.add_task("members moved", total=None)
        for shard in shards:
            with open_index(found, artifact, shard) as index:
                before = done
                done = before + index.compactor(found).run_until_idle(
                    lambda r, before=before: bar.update(task, completed=before.moved + r.moved)  # type: ignore[misc]  # a default binds it
                )
    return {"splits": done.splits, "merges": done.merges, "marks": done.marks, "moved": done.moved}
