"""``deadletters list``, ``show``, ``replay``: what could not be applied, and trying again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Final

import orjson
import typer
from rich.table import Table

from schemas.config import Config
from schemas.dead_letters import DeadLetter, Reason
from schemas.errors import NotFoundError, UsageError
from streamer.cli._context import AsJson, ConfigFile, DataDir, Verbose, config, grid, show
from streamer.dead_letter_replay import REPLAYED_FILE, replay_letters
from streamer.dead_letters import read_file, read_topic
from streamer.generations import dead_letter_files

Kafka = Annotated[
    bool | None,
    typer.Option("--kafka/--file", help="Read the topic, or the files in the data directory.", show_default="files"),
]
_OLD_FILE: Final = "deadletters.jsonl"  # of releases that had one file for all
OneReason = Annotated[Reason | None, typer.Option(help="Only this reason.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Records that could not be applied.", no_args_is_help=True)
    group.command("list")(list_)
    group.command("show")(show_)
    group.command("replay")(replay)
    app.add_typer(group, name="deadletters")


def list_(
    limit: Annotated[int, typer.Option(min=1, help="Newest letters shown.")] = 50,
    reason: OneReason = None,
    kafka: Kafka = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """The newest dead letters, with their reason and where they came from."""
    counts: dict[str, int] = {}
    newest: deque[dict[str, object]] = deque(maxlen=limit)
    for letter in _letters(config(config_file, data_dir, verbose), kafka):
        if reason is None or letter.reason is reason:
            counts[letter.reason.value] = counts.get(letter.reason.value, 0) + 1
            newest.append(letter.model_dump(mode="json"))

    def table() -> Table:
        total = sum(counts.values())
        out = grid(f"{total} dead letters, newest {len(newest)}", "reason", "from", "at", "detail", "value")
        for row in newest:
            value = row["value"]
            out.add_row(
                str(row["reason"]),
                f"{row['topic']}-{row['partition']}@{row['offset']}",
                _when(int(str(row["failed_at_ms"]))),
                str(row["detail"]),
                "" if value is None else f"{len(str(value)) * 3 // 4} bytes",
            )
        return out

    show({"total": sum(counts.values()), "reasons": counts, "letters": list(newest)}, as_json, table)


def show_(
    source: Annotated[str, typer.Argument(metavar="TOPIC-PARTITION@OFFSET", help="Where the record was read.")],
    kafka: Kafka = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """One dead letter, whole."""
    name, _, offset = source.rpartition("@")
    topic, _, partition = name.rpartition("-")
    if not (topic and partition.isdigit() and offset.isdigit()):
        raise UsageError(f"{source!r} is no place in a topic; give TOPIC-PARTITION@OFFSET, for example items-0@17")
    letters = _letters(config(config_file, data_dir, verbose), kafka)
    found = [letter for letter in letters if letter.source == source]
    if not found:
        raise NotFoundError(f"no dead letter of {source}; `facetstream deadletters list` shows what there is")
    letter = found[-1]

    def table() -> Table:
        out = grid(f"dead letter of {letter.source}", "what", "is")
        out.add_row("reason", letter.reason.value)
        out.add_row("error", letter.error or "")
        out.add_row("detail", letter.detail)
        out.add_row("at", _when(letter.failed_at_ms))
        out.add_row("key", _readable(letter.key))
        out.add_row("value", _readable(letter.value))
        return out

    document = letter.model_dump(mode="json")
    show(document | {"readable": {"key": _readable(letter.key), "value": _readable(letter.value)}}, as_json, table)


def replay(
    reason: OneReason = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Letters sent at most, the oldest.", show_default="all")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    kafka: Kafka = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Send records that were set aside to their topics again, each once: after the cause is gone."""
    found = config(config_file, data_dir, verbose)
    if found.source.kind != "kafka":
        raise UsageError(
            "an event log is not written by this command: append the corrected lines to its files, they are read as "
            "new records (`facetstream deadletters show` prints the old ones)"
        )
    letters = (letter for letter in _letters(found, kafka) if reason is None or letter.reason is reason)
    noted = found.data_dir / REPLAYED_FILE
    if not dry_run:
        noted.parent.mkdir(parents=True, exist_ok=True)
    done = replay_letters(letters, found.kafka, noted, limit=limit, dry_run=dry_run)

    def table() -> Table:
        out = grid(f"{done.sent} dead letters {'would be sent' if dry_run else 'sent'} again", "passed over", "why")
        for why, count in sorted(done.passed_over.items()):
            out.add_row(str(count), why)
        return out

    show({"sent": done.sent, "dry_run": dry_run, "passed_over": dict(done.passed_over)}, as_json, table)


def _letters(found: Config, kafka: bool | None) -> Iterator[DeadLetter]:
    """Those of the topic if asked for, or where there are no files."""
    old = found.data_dir / _OLD_FILE
    files = [old] * old.exists() + dead_letter_files(found.data_dir)
    if kafka if kafka is not None else not files:
        return read_topic(found.kafka)
    return chain.from_iterable(map(read_file, files))


def _when(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_ms / 1_000))


def _readable(data: bytes | None) -> str:
    """JSON laid out, else text, else hexadecimal."""
    if data is None:
        return "null"
    document: Any
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data.hex(" ", 2)
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
