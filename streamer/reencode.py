"""One shard encoded anew, in a process of its own: what :mod:`streamer.reencoding` starts.

One line of JSON on standard input says what to do; the answer, what was done or an error, is one JSON document on
standard output. It ends at once when its input does, which is when the daemon has ended, however that came about.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any, Final

import orjson

from model_runtime.runtime import FrozenModel
from schemas.config import Config
from schemas.errors import FacetstreamError
from streamer.cli._context import set_up_logging
from streamer.generations import model_path
from streamer.reencoding import make_of_image
from streamer.shards import Generation

_NICE: Final = 10


def main() -> int:
    """Do what the input says; the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which is for the daemon: it ends us
    told: dict[str, Any] = orjson.loads(_line())
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    os.nice(_NICE)  # events and requests come first
    try:
        config = Config.model_validate(told["config"])
        set_up_logging(config.log)
        name = told["generation"]
        model = FrozenModel.load(model_path(config.data_dir, name), config.model.device, config.model.threads)
        done = make_of_image(config, told["before"], Generation(name, model), told["shard"])
    except FacetstreamError as error:
        sys.stdout.buffer.write(orjson.dumps({"error": str(error)}))
        return error.exit_code
    sys.stdout.buffer.write(done.model_dump_json().encode())
    return 0


def _line() -> bytes:
    """The first line of the input, byte by byte: what buffers would hold back the end of it."""
    line = b""
    while (byte := os.read(0, 1)) not in {b"", b"\n"}:
        line += byte
    return line


def _end_with_parent() -> None:
    """Wait until whoever started this process has ended, or closed our input."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
