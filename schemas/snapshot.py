"""What a snapshot says of itself: the manifest of a full one, and that of the deltas that follow it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from schemas.checkpoints import CheckpointFile, FileName
from schemas.store import StoreMeta

FullName = Annotated[str, StringConstraints(pattern=r"^full-[0-9]{13}-[0-9a-f]{8}$")]
FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def index_name(store: StoreMeta) -> str:
    """Folder of an index version in a target."""
    return f"{store.generation}-{store.model_hash[:12]}"


class ListOrder(BaseModel):
    """How posting lists are ordered.

    Attributes:
        window: which half-life counts, from 0 up; -1 the last.
        creation: engagements that creation counts like.
        slack: share of a list that may change before it is sorted again. A full snapshot's lists are sorted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: int = Field(ge=-1)
    creation: float = Field(ge=0)
    slack: float = Field(ge=0)


class SnapshotInfo(BaseModel):
    """A full snapshot of one shard, or all that changed since.

    Attributes:
        kind: full, or delta.
        store: what the index was made for: generation, model and codebook hashes among it.
        shard: its number.
        full: name of the full snapshot this is, or that this delta belongs to and to no other.
        sequence: 0 of a full, then ascending.
        history: of the store, see :class:`schemas.store.Totals`.
        offsets: partition name -> next offset, exactly those of the live view it was taken from.
        ordinals: ordinals below it are taken.
        labels: numbers of sets of labels below it are.
        items_live: live items.
        journal_seq: entries of the journal so far; nothing was rebalanced between two snapshots with the same.
        stream_time_ms: largest occurred_at applied.
        order: how posting lists are ordered; landmark: as of when, see :mod:`indexer.order`.
        created_at_ms: wall clock when it was taken, epoch milliseconds.
        files: name -> content. Of a full, its arrays; of a delta, its segments in the order in which they are applied.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    kind: Literal["full", "delta"]
    store: StoreMeta
    shard: int = Field(ge=0)
    full: FullName
    sequence: int = Field(ge=0)
    history: str
    offsets: dict[str, int]
    ordinals: int = Field(ge=0)
    labels: int = Field(ge=1)
    items_live: int = Field(ge=0)
    journal_seq: int = Field(ge=0)
    stream_time_ms: int
    order: ListOrder
    landmark: int
    created_at_ms: int = Field(ge=0)
    files: dict[FileName, CheckpointFile]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def index(self) -> str:
        """Folder of the index version in the target; all its shards lie there."""
        return index_name(self.store)

    @property
    def folder(self) -> str:
        """Folder of the shard in the target."""
        return f"{self.index}/shard-{self.shard:05d}"


class ShardPointer(BaseModel):
    """``CURRENT`` of a shard: the full snapshot to read, with the deltas in its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    full: FullName


class IndexPointer(BaseModel):
    """``CURRENT`` of a target: the folder of the index version to read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: FolderName
