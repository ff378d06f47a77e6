"""``demo``, ``import``, ``train``: data in, a model out, and both at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Group
from rich.progress import Progress

from schemas.errors import ConfigError, UsageError
from schemas.settings_files import laid_over, read_toml
from schemas.training import TrainingConfig
from streamer.cli._context import AsJson, ConfigFile, Verbose, config, err, grid, moment_ms, progress_bar, show
from streamer.cli._source import Bootstrap, Events, source_config
from streamer.importers.globo import import_globo
from streamer.importers.movielens import import_movielens

if TYPE_CHECKING:
    from schemas.config import Config
    from streamer.demo import DemoOutcome
    from streamer.training_topics import TopicSpan


class DataSet(StrEnum):
    """Public data sets with an importer."""

    MOVIELENS = "movielens"
    GLOBO = "globo"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(demo)
    app.command("import")(import_)
    app.command()(train)


def demo(
    workdir: Annotated[Path, typer.Option(help="Where to work; events and model are kept there.")] = Path("demo-work"),
    retrain: Annotated[bool, typer.Option("--retrain", help="Train anew although a model is there.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """The whole main job on the shipped MovieLens data, without a broker."""
    from streamer.demo import run_demo  # noqa: PLC0415  # loads torch, which most commands do without

    config(None, None, verbose, log__level=None if verbose else "warning")
    with progress_bar() as bar:
        outcome = run_demo(workdir, retrain=retrain, stage=_stages(bar))
    show(outcome.reply, as_json, lambda: _demo_tables(outcome, workdir))
    if not outcome.reply.verify_.ok:
        raise typer.Exit(1)


def _stages(bar: Progress) -> Callable[[str, int | None], Callable[[int], None]]:
    def stage(name: str, total: int | None) -> Callable[[int], None]:
        err.print(f"- {name}", highlight=False)
        task = bar.add_task(name, total=total)
        return lambda count: bar.advance(task, count)

    return stage


def _demo_tables(outcome: DemoOutcome, workdir: Path) -> Group:
    reply, titles = outcome.reply, outcome.titles

    def name(item_id: str) -> str:
        return titles.get(item_id, item_id)

    summary = grid("\nWhat happened", "", "")
    kept = f"{reply.training_seconds:.0f} s" if outcome.trained else f"kept from an earlier run ({workdir / 'model'})"
    summary.add_row("training", kept)
    records = f"{reply.items} items, {reply.engagements} engagements in {reply.seconds:.1f} s"
    summary.add_row("streamed", f"{records} ({reply.items_per_second:.0f} records/s, rebalancing included)")
    summary.add_row(
        "freshness", f"p50 {reply.freshness_ms.p50:.0f} ms, p99 {reply.freshness_ms.p99:.0f} ms at full load"
    )
    summary.add_row("rebalanced", f"{reply.splits} splits, {reply.merges} merges")
    verdict = "no violations" if reply.verify_.ok else f"{reply.verify_.violations_total} VIOLATIONS"
    summary.add_row("verified", f"{verdict} in {reply.verify_.checked.postings} postings")

    leaves = grid("\nPosting lists", "facet", "leaves", "bounds", "min", "p50", "p99", "max")
    for row in outcome.stats.facets:
        size = row.size
        bounds = f"{row.bounds[0]}-{row.bounds[1]}"
        leaves.add_row(
            str(row.facet), str(row.leaves), bounds, str(size.min), str(size.p50), str(size.p99), str(size.max)
        )

    trigger = outcome.trigger
    followed = grid(f"\n{name(trigger.item_id)} ({trigger.item_id})", "facet", "code", "leaf")
    for facet in trigger.facets:
        followed.add_row(str(facet.facet), str(tuple(facet.code)), str(facet.leaf))
    answer = grid("\ngoes well with", "item", "score", "from facet, leaf")
    for result in outcome.answer.results:
        answer.add_row(name(result.item_id), f"{result.score:.3f}", f"{result.facet}, {result.leaf}")

    recall: dict[str, Any] = reply.recall
    columns = ("recall@100", "recall@500", "cold_recall@100", "scored_per_query")
    title = f"\nRecall on the last fifth of the time ({recall['queries']} requests, pool {recall['pool']:.0f} films)"
    measured = grid(title, "system", *columns, right=columns)
    for system in recall["systems"]:
        measured.add_row(
            system["name"], *("-" if system[column] is None else f"{system[column]:g}" for column in columns)
        )
    data = workdir / "data"
    more = (
        f"\nLook around: facetstream stats --data-dir {data}\n"
        f"             facetstream item {trigger.item_id} --data-dir {data}\n"
        f"             facetstream query --item {trigger.item_id} -k 10 --data-dir {data}"
    )
    return Group(summary, leaves, followed, answer, measured, more)


def import_(
    data_set: Annotated[DataSet, typer.Argument(help="Which data set.")],
    src: Annotated[Path, typer.Argument(help="Its directory or file.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Event log directory to write.")],
    partitions: Annotated[int, typer.Option(min=1, help="Files per stream.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an event log that is there.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """A public data set to an event log."""
    config(None, None, verbose)
    if not src.exists():
        raise UsageError(f"{src} does not exist; give the {data_set} data set's directory or file")
    with progress_bar() as bar:
        task = bar.add_task("rows", total=None)
        convert = import_movielens if data_set is DataSet.MOVIELENS else import_globo
        report = convert(
            src, out_dir, progress=lambda n: bar.advance(task, n), partitions=partitions, overwrite=overwrite
        )
    show(
        {name: getattr(report, name) for name in ("items", "updates", "engagements", "from_ms", "to_ms")},
        as_json,
        lambda: f"{report.items} items, {report.updates} updates, {report.engagements} engagements -> {out_dir}",
    )


def train(
    out_dir: Annotated[Path, typer.Option("--out", help="Artifact directory to write.")],
    events: Events = None,
    bootstrap: Bootstrap = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Of topics: earliest, an offset, or a time (RFC 3339).", show_default="earliest"),
    ] = None,
    stop: Annotated[
        str | None,
        typer.Option(
            "--to", help="Of topics: latest, an offset, or a time; not itself included.", show_default="latest"
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Learn from events before this time only; RFC 3339 or epoch milliseconds.")
    ] = None,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="TOML with training settings; see `schema training`.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; of a refresh, with --continue.")] = None,
    codewords: Annotated[int | None, typer.Option(min=2, help="M, codewords per layer.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random.")] = None,
    before: Annotated[
        Path | None,
        typer.Option("--continue", help="Go on from this artifact directory or checkpoint with the newest events."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to write the state of training to, and to take it up from.")
    ] = None,
    curves: Annotated[Path | None, typer.Option(help="File to add the losses of each step to, JSON lines.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    config_file: ConfigFile = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Co-train encoder, codebook and prior on an event log or on topics, or go on from a model; export the artifact."""
    from streamer.train import refresh_artifact, train_artifact  # noqa: PLC0415  # loads torch

    learned_from = _learned_from(source_config(config_file, None, verbose, events, bootstrap, None), start, stop)
    until_ms = moment_ms("--until", until)
    given = {} if settings_file is None else read_toml(settings_file, "training settings")
    flags = {"codewords": codewords, "seed": seed}
    given |= {name: value for name, value in flags.items() if value is not None}
    files: dict[str, Any] = {"checkpoint": checkpoint, "curves": curves, "device": device}
    with progress_bar() as bar, settings_errors():
        if before is None:
            wanted = TrainingConfig.model_validate(given | ({} if steps is None else {"steps": steps}))
            task = bar.add_task("steps", total=wanted.steps)
            manifest = train_artifact(learned_from, out_dir, wanted, until_ms, lambda n: bar.advance(task, n), **files)
        else:
            if steps is not None:
                given = laid_over(given, {"refresh": {"steps": steps}})
            task = bar.add_task("steps", total=None)
            manifest = refresh_artifact(
                learned_from, before, out_dir, given, until_ms, lambda n: bar.advance(task, n), **files
            )

    def table() -> Group:
        rows = grid(f"{manifest.name} {manifest.version} -> {out_dir}", "metric", "value", right=("value",))
        for metric, value in sorted(manifest.metrics.items()):
            rows.add_row(metric, f"{value:.4g}")
        return Group(rows, "next: facetstream run --model " + str(out_dir))

    show(manifest, as_json, table)


def _learned_from(found: Config, start: str | None, stop: str | None) -> Path | TopicSpan:
    from streamer.training_topics import TopicSpan  # noqa: PLC0415  # loads Kafka's client

    if found.source.kind == "kafka":
        return TopicSpan(found, start or "earliest", stop or "latest")
    if found.source.path is None:
        raise UsageError("source.kind is eventlog but source.path is not set; give --events DIRECTORY")
    if start is not None or stop is not None:
        raise UsageError(
            "--from and --to bound what is read of topics; of an event log --until leaves out what is later"
        )
    return found.source.path


@contextmanager
def settings_errors() -> Iterator[None]:
    """Training settings that are none become a clear message.

    Raises:
        ConfigError: naming the setting.
    """
    try:
        yield
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"training settings: {where}: {problem['msg']} (given: {problem['input']!r})") from None
