"""Full snapshots: what a live view holds at one moment as arrays that can be mapped into memory.

Of n ordinals, F facets, and in facet f m leaves, i live items and r raw indices with a route:

    id_offsets (n+1,) i64, id_bytes u8       item ids one after the other
    id_hashes (n,) u64, id_order (n,) u32    hashes of the ids ascending, and whose they are
    live (n,) bool, created_at (n,) i64
    leaf, position (n, F) u32                leaf of an item, and its row in fF.members and fF.vectors
    epochs (n, W) i32, decayed (n, W) f64, last_at (n,) i64     engagement counters
    fF.leaves (m,) i64, fF.centroids (m, d) f32                 ascending
    fF.offsets (m+1,) i64                    where each leaf's members begin
    fF.members (i,) u32, fF.vectors (i, d) f16                  in leaf order; within a leaf the greatest prior first
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
from indexer.counters import CounterRows, decayed_counts
from indexer.snapshots import image
from indexer.snapshots.changes import FrozenVectors
from indexer.view import LiveView
from schemas.checkpoints import CheckpointFile
from schemas.config import RetrievalConfig
from schemas.errors import StoreCorruptError
from schemas.snapshot import SnapshotInfo
from schemas.store import StoreMeta

I64 = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
Stored = Mapping[str, Array]

_CHUNK: Final = 8_192
_SHARED: Final = (
    "id_offsets",
    "id_bytes",
    "id_hashes",
    "id_order",
    "live",
    "created_at",
    "leaf",
    "position",
    "epochs",
    "decayed",
    "last_at",
)
_PER_FACET: Final = (
    "leaves",
    "centroids",
    "offsets",
    "members",
    "vectors",
    "raws",
    "route_offsets",
    "route_leaves",
)


@dataclass(frozen=True, slots=True)
class FullImage:
    """What a full snapshot is written from: small arrays as they were, and a hold on the embeddings.

    Attributes:
        at: offsets and counts.
        columns: of all ordinals.
        counters: likewise.
        leaves: of each facet: live leaves, centroids.
        routes: of each facet: raw indices, leaves, counts.
        vectors: watches the view until :meth:`FullImage.release`.
    """

    view: LiveView
    at: image.At
    columns: image.ItemColumns
    counters: CounterRows
    leaves: list[tuple[I64, npt.NDArray[np.float32]]]
    routes: list[tuple[I64, npt.NDArray[np.uint32], I64]]
    vectors: FrozenVectors

    @classmethod
    def take(cls, view: LiveView) -> FullImage:
        """Copy what is small; ``view.lock`` is held. About 20 ms for 300,000 items."""
        facets = range(view.meta.facets)
        at = image.at(view)
        every = slice(0, at.ordinals)
        out = cls(
            view,
            at,
            image.items(view, every),
            image.counters(view, every),
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


class IdHashes:
    """Hashes of item ids by ordinal. An ordinal keeps its id for ever, so each id is hashed once."""

    def __init__(self) -> None:
        self._hashes = np.zeros(0, np.uint64)

    def of(self, encoded: list[bytes]) -> npt.NDArray[np.uint64]:
        """(n,) hashes of the ids of ordinals 0 to n - 1."""
        self._hashes = np.concatenate([self._hashes, hash_ids(encoded[len(self._hashes) :])])
        return self._hashes[: len(encoded)]


def write_full(
    taken: FullImage,
    hashes: IdHashes,
    target: CheckpointTarget,
    folder: str,
    retrieval: RetrievalConfig,
    now_ms: int,
) -> dict[str, CheckpointFile]:
    """Write the arrays of a full snapshot into ``folder``; any thread may do it beside the writer.

    Args:
        taken: what to write.
        hashes: of this index; remembers them for the next one.
        target: where to.
        folder: in it; nobody reads it before its manifest is there.
        retrieval: weights of the prior that orders members within their leaf.
        now_ms: time at which the prior is taken.

    Returns:
        File name -> content.

    Raises:
        StoreError: if the target refuses.
    """
    files: dict[str, CheckpointFile] = {}

    def put(name: str, array: Array) -> None:
        files[f"{name}.npy"] = _stream(target, f"{folder}/{name}.npy", array.dtype, array.shape, [array])

    ordinals = taken.at.ordinals
    for name, array in _id_arrays(image.item_ids(taken.view, slice(0, ordinals)), hashes).items():
        put(name, array)
    columns, rows = taken.columns, taken.counters
    put("live", columns.live)
    put("created_at", columns.created_at)
    put("leaf", columns.leaf)
    for name, array in (("epochs", rows.epochs), ("decayed", rows.decayed), ("last_at", rows.last_at)):
        put(name, array)

    live = np.flatnonzero(columns.live)
    worth = _prior(taken, retrieval, now_ms)[live]
    dim = taken.view.meta.dim
    position = np.zeros((ordinals, taken.view.meta.facets), np.uint32)
    for facet, (leaves, centroids) in enumerate(taken.leaves):
        row_of = np.searchsorted(leaves, columns.leaf[live, facet])
        members = live[np.lexsort((-live, -worth, row_of))]
        position[members, facet] = np.arange(len(members))
        put(f"f{facet}.leaves", leaves)
        put(f"f{facet}.centroids", centroids)
        put(f"f{facet}.offsets", _offsets(np.bincount(row_of, minlength=len(leaves))))
        put(f"f{facet}.members", members.astype(np.uint32))
        name = f"f{facet}.vectors.npy"
        pieces = _pieces(taken.vectors, facet, members)
        files[name] = _stream(target, f"{folder}/{name}", np.dtype(np.float16), (len(members), dim), pieces)
        raws, targets, counts = taken.routes[facet]
        put(f"f{facet}.raws", raws)
        put(f"f{facet}.route_offsets", _offsets(counts))
        put(f"f{facet}.route_leaves", targets)
    put("position", position)
    target.settle(folder)
    return files


def _prior(taken: FullImage, retrieval: RetrievalConfig, now_ms: int) -> npt.NDArray[np.float64]:
    """(n,) as :func:`indexer.retrieval.retrieve.prior` has it."""
    out = np.zeros(taken.at.ordinals)
    half_lives = taken.view.meta.half_lives_s
    if retrieval.engagement_weight and len(out):
        decayed = decayed_counts(taken.counters, now_ms, half_lives)
        out += retrieval.engagement_weight * np.log1p(decayed[:, retrieval.decay])
    if retrieval.freshness_weight and len(out):
        age_s = np.maximum(0, now_ms - taken.columns.created_at) / 1_000
        out += retrieval.freshness_weight * np.exp2(-age_s / retrieval.freshness_half_life_s)
    return out


def _pieces(vectors: FrozenVectors, facet: int, members: I64) -> Iterator[Array]:
    for first in range(0, len(members), _CHUNK):
        yield vectors.read(facet, members[first : first + _CHUNK])


def _id_arrays(item_ids: list[str], known: IdHashes) -> dict[str, Array]:
    encoded = [item_id.encode() for item_id in item_ids]
    hashes = known.of(encoded)
    order = np.argsort(hashes, kind="stable")
    return {
        "id_offsets": _offsets(np.fromiter(map(len, encoded), np.int64, len(encoded))),
        "id_bytes": np.frombuffer(b"".join(encoded), np.uint8),
        "id_hashes": hashes[order],
        "id_order": order.astype(np.uint32),
    }


def hash_ids(encoded: list[bytes]) -> npt.NDArray[np.uint64]:
    """(n,) 64-bit hashes of item ids, the same in every process."""
    digest = hashlib.blake2b
    return np.frombuffer(b"".join([digest(each, digest_size=8).digest() for each in encoded]), "<u8")


def _offsets(counts: I64) -> I64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


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
    """Files of a full snapshot."""
    return [f"{name}.npy" for name in _SHARED] + [
        f"f{facet}.{name}.npy" for facet in range(meta.facets) for name in _PER_FACET
    ]


def open_full(info: SnapshotInfo, path_of: Callable[[str], Path]) -> Stored:
    """Map the arrays of a full snapshot into memory.

    Args:
        info: its manifest.
        path_of: file name -> where it lies here.

    Raises:
        FileNotFoundError: if a file is not there (any more).
        StoreCorruptError: if one is no array, or the manifest lacks it.
    """
    missing = set(names_of(info.store)) - info.files.keys()
    if missing:
        raise StoreCorruptError(f"snapshot {info.full} of shard {info.shard} lacks {', '.join(sorted(missing))}")
    out: dict[str, Array] = {}
    for name in info.files:
        try:
            # As a plain array: that of numpy's own class costs a microsecond more at every slice.
            out[name.removesuffix(".npy")] = np.asarray(np.load(path_of(name), mmap_mode="r", allow_pickle=False))
        except ValueError as error:
            raise StoreCorruptError(f"{name} of snapshot {info.full} is no array: {error}") from error
    return out
