"""Full snapshots: the arrays of a live view at one moment, as files that several processes map and share.

Of n ordinals, F facets, R rows of posting lists (leaf * F + facet) with room for C members, and in facet f m leaves
and r raw indices with a route; what may grow is written with spare room:

    id_offsets (n+1..) i64, id_text u8, id_table u64       see indexer.ids
    state (n..) u8, created_at (n..) i64, labels (n..) u32, leaf (n.., F) u32
    label_text u8                                          sets of labels from number 1 on, a line each
    epochs (n.., W) i32, decayed (n.., W) f64, last_at (n..) i64     engagement counters
    start, length, room (R,) i64; ordinal (C,) u32, heat (C,) f32, bits (C, d) u16; place (n.., F) u32
                                                           see indexer.members; each row in order of impact
    codewords (F, L, M, d) f32
    fF.leaves (m,) i64, fF.centroids (m, d) f32            ascending
    fF.raws (r,) i64, fF.route_offsets (r+1,) i64, fF.route_leaves u32
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from indexer.checkpoints.target import CheckpointTarget
from indexer.counters import CounterRows
from indexer.ids import Ids
from indexer.keys import ItemState
from indexer.members import MemberPool
from indexer.ragged import spans
from indexer.snapshots import image
from indexer.snapshots.changes import FrozenVectors
from indexer.view import LiveView
from schemas.checkpoints import CheckpointFile
from schemas.errors import StoreCorruptError
from schemas.snapshot import SnapshotInfo
from schemas.store import StoreMeta

I64 = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
Stored = Mapping[str, Array]

_CHUNK: Final = 8_192
_SPARE: Final = 16
"""Room for this fraction more items is written along, so that a delta does not make every reader copy its columns."""
IDS: Final = ("id_offsets", "id_text", "id_table")
POOL: Final = ("start", "length", "room", "ordinal", "heat", "bits", "place")
_PER_FACET: Final = ("leaves", "centroids", "raws", "route_offsets", "route_leaves")


@dataclass(frozen=True, slots=True)
class FullImage:
    """What a full snapshot is written from: small arrays as they were, and a hold on the embeddings.

    Attributes:
        at: offsets and counts.
        id_lengths, id_text: of all ordinals.
        columns: likewise.
        leaves: of each facet: live leaves, centroids.
        routes: of each facet: raw indices, leaves, counts.
        vectors: watches the view until :meth:`FullImage.release`.
    """

    view: LiveView
    at: image.At
    id_lengths: I64
    id_text: npt.NDArray[np.uint8]
    columns: image.Columns
    leaves: list[tuple[I64, npt.NDArray[np.float32]]]
    routes: list[tuple[I64, npt.NDArray[np.uint32], I64]]
    vectors: FrozenVectors

    @classmethod
    def take(cls, view: LiveView) -> FullImage:
        """Copy what is small; ``view.lock`` keeps the writer out. About 10 ms for 300,000 items."""
        facets, at = range(view.meta.facets), image.at(view)
        offsets, text, _ = view.ids.arrays()  # no byte of these changes, whatever is added
        out = cls(
            view,
            at,
            np.diff(offsets[: at.ordinals + 1]),
            text[: offsets[at.ordinals]],
            image.columns(view, image.ITEM + image.COUNTERS, slice(0, at.ordinals)),
            [image.leaves(view, facet) for facet in facets],
            [image.routes(view, facet) for facet in facets],
            FrozenVectors(view),
        )
        view.watchers.append(out.vectors)
        return out

    def release(self) -> None:
        """Let go of the embeddings."""
        with self.view.lock:
            if self.vectors in self.view.watchers:
                self.view.watchers.remove(self.vectors)


def write_full(taken: FullImage, target: CheckpointTarget, folder: str) -> dict[str, CheckpointFile]:
    """Write the arrays of a full snapshot into ``folder``; any thread may do it beside the writer.

    Args:
        taken: what to write.
        target: where to.
        folder: in it; nobody reads it before its manifest is there.

    Returns:
        File name -> content.

    Raises:
        StoreError: if the target refuses.
    """
    files: dict[str, CheckpointFile] = {}

    def put(name: str, array: Array, rows: int = 0, pieces: Iterable[Array] | None = None) -> None:
        """``rows``: at least; the rest is zero. ``pieces``: what is written in place of ``array``."""
        shape = (max(rows, len(array)), *array.shape[1:])
        spare = np.zeros((shape[0] - len(array), *shape[1:]), array.dtype)
        path = f"{folder}/{name}.npy"
        files[f"{name}.npy"] = _stream(target, path, array.dtype, shape, pieces or [array, spare])

    room = taken.at.ordinals + taken.at.ordinals // _SPARE + 1_024
    ids = Ids()
    ids.add_texts(taken.id_lengths, taken.id_text)
    offsets, text, table = ids.arrays()
    put("id_offsets", offsets, room + 1)
    put("id_text", text, len(text) + len(text) // _SPARE)
    put("id_table", table)
    put("label_text", image.labels(taken.view, 1, taken.at.labels))
    for name, array in taken.columns.items():
        put(name, array, room)
    pool = _pool(taken, room)
    arrays: list[Array] = [pool.start, pool.length, pool.room, pool.ordinal, pool.heat, pool.place]
    for name, array in zip((each for each in POOL if each != "bits"), arrays, strict=True):
        put(name, array)
    bits = np.broadcast_to(np.uint16(0), (len(pool.ordinal), taken.view.meta.dim))
    put("bits", bits, pieces=_pieces(pool, taken.vectors, bits.shape))
    put("codewords", np.stack([facet.codewords for facet in taken.view.facets]))
    for facet, (leaves, centroids) in enumerate(taken.leaves):
        put(f"f{facet}.leaves", leaves)
        put(f"f{facet}.centroids", centroids)
        raws, targets, counts = taken.routes[facet]
        put(f"f{facet}.raws", raws)
        put(f"f{facet}.route_offsets", np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]))
        put(f"f{facet}.route_leaves", targets)
    target.settle(folder)
    return files


def _pool(taken: FullImage, items: int) -> MemberPool:
    """Posting lists in order, without their embeddings, with room for ``items``."""
    view, columns = taken.view, taken.columns
    n, facets = taken.at.ordinals, view.meta.facets
    pool = MemberPool(facets, 0)
    pool.ensure_rows(facets * (1 + max((int(ids.max(initial=-1)) for ids, _ in taken.leaves), default=-1)))
    pool.ensure_items(items)
    counters = CounterRows(
        np.zeros((n, 0), np.uint32), columns["epochs"], columns["decayed"], np.zeros(n), columns["last_at"]
    )
    impact, landmark = view.impact, taken.at.landmark
    heats = impact.heats(counters, columns["created_at"], landmark)
    pool.build(columns["state"] == ItemState.LIVE, columns["leaf"], heats)
    lists = np.flatnonzero(pool.length)
    pool.sort(lists, columns["created_at"], impact.creation, impact.half_life_s, landmark)
    return pool


def _pieces(pool: MemberPool, vectors: FrozenVectors, shape: tuple[int, ...]) -> Iterator[Array]:
    """Embeddings row by row, some rows at once, with the room between them."""
    rows = np.flatnonzero(pool.room)
    ends = pool.start[rows] + pool.room[rows]  # ascending, without gaps: the pool was filled at once
    first = written = 0
    while first < len(rows):
        last = max(first + 1, int(np.searchsorted(ends, written + _CHUNK, "right")))
        some = rows[first:last]
        at = spans(pool.start[some], pool.length[some])
        piece = np.zeros((int(ends[last - 1]) - written, *shape[1:]), np.uint16)
        facets = np.repeat(some % pool.facets, pool.length[some])
        piece[at - written] = vectors.read(facets, pool.ordinal[at]).view(np.uint16)
        yield piece
        first, written = last, int(ends[last - 1])
    yield np.zeros((shape[0] - written, *shape[1:]), np.uint16)


def _stream(
    target: CheckpointTarget, path: str, dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterable[Array]
) -> CheckpointFile:
    """Write an array given piece by piece along its first axis."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    digest, size = hashlib.sha256(), 0

    def chunks() -> Iterator[bytes | memoryview]:
        yield header.getvalue()
        for piece in pieces:
            whole = np.ascontiguousarray(piece)
            yield whole.data.cast("B") if whole.size else b""

    def counted() -> Iterator[bytes | memoryview]:
        nonlocal size
        for chunk in chunks():
            digest.update(chunk)
            size += len(chunk)
            yield chunk

    target.stream(path, counted())
    return CheckpointFile(sha256=digest.hexdigest(), size=size)


def names_of(meta: StoreMeta) -> list[str]:
    """Arrays of a full snapshot."""
    shared = [*IDS, *image.ITEM, *image.COUNTERS, *POOL, "codewords", "label_text"]
    return shared + [f"f{facet}.{name}" for facet in range(meta.facets) for name in _PER_FACET]


def open_full(info: SnapshotInfo, path_of: Callable[[str], Path]) -> tuple[Stored, Stored]:
    """Map the arrays of a full snapshot into memory.

    Args:
        info: its manifest.
        path_of: file name -> where it lies here.

    Returns:
        All of them as they were written, and those that deltas change once more, to be changed: only this process sees
        that, and only what it changes takes memory of its own.

    Raises:
        FileNotFoundError: if a file is not there (any more).
        StoreCorruptError: if one is no array, or the manifest lacks it.
    """
    names = names_of(info.store)
    missing = [name for name in names if f"{name}.npy" not in info.files]
    if missing:
        raise StoreCorruptError(f"snapshot {info.full} of shard {info.shard} lacks {', '.join(missing)}")
    paths = {name: path_of(f"{name}.npy") for name in names}
    try:
        # As plain arrays: those of numpy's own class cost a microsecond more at every slice.
        stored = {name: np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)) for name, path in paths.items()}
        changing = {
            name: np.asarray(np.load(paths[name], mmap_mode="c", allow_pickle=False))
            for name in (*IDS, *image.ITEM, *image.COUNTERS, *POOL)
        }
    except ValueError as error:
        raise StoreCorruptError(f"a file of snapshot {info.full} is no array: {error}") from error
    return stored, changing
