"""``deadletters list``: what could not be applied."""

from __future__ import annotations

import time
from collections import deque
from typing import Annotated

import typer
from rich.table import Table

from schemas.dead_letters import Reason
from streamer.cli._context import AsJson, ConfigFile, DataDir, Verbose, config, grid, show
from streamer.daemon import DEAD_LETTER_FILE
from streamer.dead_letters import read_file, read_topic


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Records that could not be applied.", no_args_is_help=True)
    group.command("list")(list_)
    app.add_typer(group, name="deadletters")


def list_(
    limit: Annotated[int, typer.Option(min=1, help="Newest letters shown.")] = 50,
    reason: Annotated[Reason | None, typer.Option(help="Only this reason.")] = None,
    kafka: Annotated[
        bool | None,
        typer.Option("--kafka/--file", help="Read the topic or the file.", show_default="where the file is"),
    ] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """The newest dead letters, with their reason and where they came from."""
    found = config(config_file, data_dir, verbose)
    file = found.data_dir / DEAD_LETTER_FILE
    from_topic = kafka if kafka is not None else not file.exists()
    letters = read_topic(found.kafka) if from_topic else read_file(file)
    counts: dict[str, int] = {}
    newest: deque[dict[str, object]] = deque(maxlen=limit)
    for letter in letters:
        if reason is None or letter.reason is reason:
            counts[letter.reason.value] = counts.get(letter.reason.value, 0) + 1
            newest.append(letter.model_dump(mode="json"))

    def table() -> Table:
        total = sum(counts.values())
        out = grid(f"{total} dead letters, newest {len(newest)}", "reason", "from", "at", "detail", "value")
        for row in newest:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(int(str(row["failed_at_ms"])) / 1_000))
            value = row["value"]
            out.add_row(
                str(row["reason"]),
                f"{row['topic']}-{row['partition']}@{row['offset']}",
                when,
                str(row["detail"]),
                "" if value is None else f"{len(str(value)) * 3 // 4} bytes",
            )
        return out

    show({"total": sum(counts.values()), "reasons": counts, "letters": list(newest)}, as_json, table)
