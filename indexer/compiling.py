"""Where compiled kernels are kept, so that they are those of this very code.

numba keeps what it compiled beside the sources and looks at the one file a kernel is in. A kernel that takes in another
one would stay as it was when that other one changes, and after an upgrade what is kept may name classes that are gone,
which ends the process. Here each state of the sources has a folder of its own, below ``XDG_CACHE_HOME``; where that
cannot be written to, or ``NUMBA_CACHE_DIR`` says otherwise, numba's own ways hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numba
from numba import njit

import schemas

__all__ = ["njit"]

_KEPT_S: Final = 30 * 86_400
"""Folders of other states that nobody started with for so long are removed."""


def folder(sources: Sequence[Path], caches: Path) -> Path:
    """The folder of a state of the sources, made and marked as used; others that are old are removed.

    Raises:
        OSError: if it cannot be made.
    """
    digest = hashlib.sha256()
    for each in sources:
        for path in sorted(each.rglob("*.py")):
            digest.update(b"%s\0%d\0" % (str(path.relative_to(each)).encode(), path.stat().st_size))
            digest.update(path.read_bytes())
    mine = caches / digest.hexdigest()[:16]
    mine.mkdir(parents=True, exist_ok=True)
    os.utime(mine)
    for other in caches.iterdir():
        with contextlib.suppress(OSError):  # another process may be removing it
            if time.time() - other.stat().st_mtime > _KEPT_S:
                shutil.rmtree(other)
    return mine


if not numba.config.CACHE_DIR:
    with contextlib.suppress(OSError, RuntimeError):  # nowhere to write, or no home
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "facetstream", "kernels")
        kernels_take_from = [Path(__file__).parent, Path(schemas.__file__).parent]
        numba.config.CACHE_DIR = str(folder(kernels_take_from, caches))
