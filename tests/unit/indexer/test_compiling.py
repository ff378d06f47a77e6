"""Compiled kernels are kept apart for each state of the sources."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numba

from indexer import compiling, member_kernels


def test_each_state_of_the_sources_has_its_folder_and_old_ones_go(tmp_path: Path) -> None:
    sources, caches = tmp_path / "sources", tmp_path / "caches"
    sources.mkdir()
    (sources / "a.py").write_text("one")
    first = compiling.folder([sources], caches)
    assert compiling.folder([sources], caches) == first
    (sources / "a.py").write_text("two")
    second = compiling.folder([sources], caches)
    assert second != first
    assert sorted(caches.iterdir()) == sorted([first, second])
    long_ago = time.time() - 40 * 86_400
    os.utime(first, (long_ago, long_ago))
    compiling.folder([sources], caches)
    assert list(caches.iterdir()) == [second]


def test_kernels_are_kept_there() -> None:
    assert member_kernels.append.stats.cache_path.startswith(str(numba.config.CACHE_DIR))
