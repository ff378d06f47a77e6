"""The command ``facetstream``. Exit codes: 0 done, 1 a check failed or nothing found, 2 usage, 3 unavailable."""

from __future__ import annotations

import os
import sys

import typer

from schemas.errors import FacetstreamError
from streamer.cli import (
    checkpoint,
    configuration,
    deadletters,
    evaluate,
    generation,
    inspect,
    learn,
    query,
    refresh,
    replays,
    snapshot,
    stream,
    trainer,
)
from streamer.cli._context import err

app = typer.Typer(
    name="facetstream",
    help="A streaming real-time index updater for the multifaceted learnable index (MFLI).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for room in (
    learn,
    trainer,
    evaluate,
    stream,
    inspect,
    query,
    replays,
    generation,
    refresh,
    checkpoint,
    snapshot,
    deadletters,
    configuration,
):
    room.register(app)


def _tell(message: str) -> None:
    err.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; errors become one clear message and an exit code."""
    try:
        app(standalone_mode=True)
    except FacetstreamError as error:
        _tell(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output (head, less) left: not an error, but nothing may be flushed to it any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if {"-v", "--verbose"} & set(sys.argv):
            raise
        _tell(f"{type(error).__name__}: {error}; this is a defect: please report it with what `-v` adds")
        sys.exit(1)
