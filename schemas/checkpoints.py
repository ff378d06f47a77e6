"""What a checkpoint says of itself: the manifest that makes its files a store."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from schemas.store import StoreMeta

# Names become paths, so nothing that could lead elsewhere.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class CheckpointFile(BaseModel):
    """One file's content: SHA-256 in hexadecimal, bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Digest
    size: int = Field(ge=0)


class CheckpointInfo(BaseModel):
    """One checkpoint of one shard.

    Attributes:
        store: what the store was made for: generation, model and codebook hashes among it.
        shard: its number.
        offsets: partition name -> next offset, as the copy itself holds them.
        source: what identifies the source the offsets belong to, as the copy holds it; empty if it does not say.
        created_at_ms: wall clock, epoch milliseconds.
        epoch: group generation of the daemon that took it; informative.
        files: name in the store's directory -> content.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    store: StoreMeta
    shard: int = Field(ge=0)
    offsets: dict[str, int]
    source: dict[str, str] = {}
    created_at_ms: int = Field(ge=0)
    epoch: int = 0
    files: dict[FileName, CheckpointFile]

    @property
    def total(self) -> int:
        """Sum of the offsets: how far it reaches."""
        return sum(self.offsets.values())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def folder(self) -> str:
        """Where it lies in the target: checkpoints of one folder share their files."""
        return f"{self.store.model_hash}/shard-{self.shard:05d}"

    @property
    def name(self) -> str:
        """Path of its manifest in the target, without the suffix."""
        return f"{self.folder}/{self.created_at_ms}-{self.total}"
