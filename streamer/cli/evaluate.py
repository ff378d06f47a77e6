"""``evaluate``: what would have been found, had the index answered past requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Group

from schemas.errors import UsageError
from streamer.cli._context import AsJson, Verbose, config, err, grid, moment_ms, progress_bar, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

_COLUMNS = (
    "recall@100",
    "recall@500",
    "cold_recall@100",
    "fresh_recall@100",
    "tail_recall@100",
    "low_exposure_share",
    "scored_per_query",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


def evaluate(
    events: Annotated[Path, typer.Option(help="Event log directory.")],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="Start of the evaluated span; RFC 3339 or epoch milliseconds. Default: by --share."
        ),
    ] = None,
    to: Annotated[str | None, typer.Option(help="Its end. Default: the end of the log.")] = None,
    share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Without --from: the share of engagements that lie before.")
    ] = 0.8,
    model: Annotated[
        Path | None,
        typer.Option(help="Evaluate this artifact as it is; without, models are trained before --from and refreshed."),
    ] = None,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="TOML with evaluation settings; see `schema evaluation`.")
    ] = None,
    training_file: Annotated[
        Path | None, typer.Option("--training", help="TOML with training settings; see `schema training`.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="A sample of at most so many.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Train so many times.")] = None,
    only_index: Annotated[
        bool, typer.Option("--only-index", help="Without peers and ablations: popularity, exact search and the index.")
    ] = False,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes at a time: a seed each, or parts of seeds where there are more.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the whole document there, for docs/evaluation.md.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Replay a log through the index in true time, ask past requests, compare with other systems."""
    from model_runtime.runtime import FrozenModel  # noqa: PLC0415  # loads torch, which most commands do without
    from streamer.evaluation.run import evaluate as measure  # noqa: PLC0415
    from streamer.evaluation.settings import load_settings  # noqa: PLC0415
    from streamer.evaluation.timeline import read_timeline, split_time  # noqa: PLC0415
    from streamer.training_data import read_training_log  # noqa: PLC0415

    config(None, None, verbose)
    settings = load_settings(settings_file, training_file)
    given = {name: value for name, value in (("requests", requests), ("seeds", seeds)) if value is not None}
    settings = settings.model_copy(update=given)
    from_ms, to_ms = moment_ms("--from", from_), moment_ms("--to", to)
    if from_ms is None:
        from_ms = split_time(read_training_log(events, until_ms=to_ms), share)
    if to_ms is not None and to_ms <= from_ms:
        raise UsageError(f"--to {to} is not after the start of the span, {from_ms} ms; evaluate a later end")
    frozen = None if model is None else FrozenModel.load(model)
    timeline = read_timeline(events, from_ms, to_ms)
    with progress_bar() as bar:
        stages = _stages(bar)
        found = measure(timeline, settings, from_ms, to_ms, model=frozen, full=not only_index, jobs=jobs, stage=stages)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    show(found, as_json, lambda: _tables(found))


def _stages(bar: Progress) -> Callable[[str, int], Callable[[int], None]]:
    def stage(name: str, total: int) -> Callable[[int], None]:
        err.print(f"- {name}", highlight=False)
        task = bar.add_task(name, total=total)
        return lambda count: bar.advance(task, count)

    return stage


def _tables(found: dict[str, Any]) -> Group:
    title = (
        f"{found['data_set']}: {found['queries']} requests of {found['users']} users, pool {found['pool']:.0f}, "
        f"{found['seeds']} seeds"
    )
    systems = grid(title, "system", *_COLUMNS, right=_COLUMNS)
    for system in found["systems"]:
        systems.add_row(system["name"], *(_number(system[column]) for column in _COLUMNS))
    wished = grid("\nComparisons", "what", "figure", "gain", "wanted", "", right=("gain", "wanted"))
    for comparison in found["comparisons"]["wished"]:
        for figure in comparison["figures"]:
            if figure["wanted"] is not None:
                wished.add_row(
                    comparison["title"],
                    f"{figure['slice']} recall@{figure['cut']}",
                    f"{100 * figure['gain']:+.1f} %" if figure["gain"] is not None else "-",
                    f"{100 * figure['wanted']:+.0f} %",
                    {True: "met", False: "missed", None: "not measured"}[figure["met"]],
                )
    return Group(systems, wished)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
