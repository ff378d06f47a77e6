"""Removing snapshots that nobody needs any more, and what a killed publisher left."""

from __future__ import annotations

from typing import Final

from indexer.checkpoints.target import CheckpointTarget
from indexer.snapshots import layout
from schemas.errors import StoreCorruptError

GRACE_S: Final = 600.0
"""On other machines' targets a reader may still be fetching what was replaced this short a time ago. On this machine
readers hold memory maps, which outlive the files, and begin again with what is current if they come too late."""


def remove_old(target: CheckpointTarget, folder: str, current: str, keep: int, grace_s: float | None = None) -> None:
    """Keep the ``keep`` newest full snapshots of a shard with their deltas; remove older ones, and half-made files.

    Call it only from the shard's one publisher, while it writes no full snapshot.

    Args:
        target: where they lie.
        folder: of the shard.
        current: name of the one that readers read, which always stays.
        keep: how many, at least 1.
        grace_s: what was replaced less than this ago stays; None: 0 on this machine, else ``GRACE_S``.

    Raises:
        StoreError: if the target refuses.
    """
    grace_s = (0.0 if target.local("") is not None else GRACE_S) if grace_s is None else grace_s
    whole: list[str] = []
    for full in layout.fulls(target, folder):
        if full == current or layout.MANIFEST in target.files(f"{folder}/{full}"):
            whole.append(full)
        else:
            _remove(target, f"{folder}/{full}")
    whole.sort(key=lambda full: (full == current, full))
    for at, full in enumerate(whole):
        if at < len(whole) - max(1, keep):
            if not grace_s or target.age_s(f"{folder}/{whole[at + 1]}/{layout.MANIFEST}") > grace_s:
                _remove(target, f"{folder}/{full}")
        elif full != current:
            _remove_strays(target, folder, full)
    for name in target.files(folder):
        if name.startswith("."):
            target.remove(f"{folder}/{name}")


def _remove(target: CheckpointTarget, folder: str) -> None:
    """Its manifest first: what has none is nothing."""
    target.remove(f"{folder}/{layout.MANIFEST}")
    for name in target.files(folder):
        target.remove(f"{folder}/{name}")
    target.remove_folder(folder)


def _remove_strays(target: CheckpointTarget, folder: str, full: str) -> None:
    """Segments and half-written files that the manifests of an earlier snapshot do not name."""
    try:
        info, delta = layout.read_pair(target, folder, full)
    except StoreCorruptError:
        return  # nobody knows what it needs
    named = {layout.MANIFEST, layout.DELTA}
    named |= set() if info is None else info.files.keys()
    named |= set() if delta is None else delta.files.keys()
    for name in target.files(f"{folder}/{full}"):
        if name not in named:
            target.remove(f"{folder}/{full}/{name}")
