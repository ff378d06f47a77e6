"""Checkpoints: copies of a shard's store from which any process can go on.

A store is a function of its offsets, so every checkpoint is right for its own; the newest is the one that reaches
furthest. Files are kept under the hash of their content, so a checkpoint copies only what the one before lacks::

    TARGET / model hash / shard-00000 / files / SHA-256                 never changed
                                      / CREATED_MS-TOTAL.json           manifest, published last
"""

from indexer.checkpoints.expiring import expire
from indexer.checkpoints.listing import list_, newest
from indexer.checkpoints.restoring import restore, restore_newest
from indexer.checkpoints.taking import Image, create, publish, take_image
from indexer.checkpoints.target import CheckpointTarget
from schemas.checkpoints import CheckpointInfo

__all__ = [
    "CheckpointInfo",
    "CheckpointTarget",
    "Image",
    "create",
    "expire",
    "list_",
    "newest",
    "publish",
    "restore",
    "restore_newest",
    "take_image",
]
