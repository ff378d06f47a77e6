"""What survives a power loss."""

from __future__ import annotations

import os
from pathlib import Path


def sync_path(path: Path) -> None:
    """Write a file's bytes, or a directory's names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
