"""Cleans up after a broker whose owner is gone, however it went.

Run as ``python guard.py FOLDER`` with a pipe on standard input that only the owner holds open. When the pipe closes,
the broker named in ``FOLDER/pid`` is killed and the folder removed. Even a SIGKILL of the owner closes the pipe.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Wait for the owner to go, then kill the broker and remove its folder."""
    sys.stdin.buffer.read()
    try:
        pid = int((folder / "pid").read_text())
        if os.fsencode(folder) in Path(f"/proc/{pid}/cmdline").read_bytes():  # a reused pid is somebody else
            os.killpg(pid, signal.SIGKILL)  # the broker leads its own group, see Broker.start
    except (FileNotFoundError, ProcessLookupError, ValueError):
        pass  # never started, or already stopped
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
