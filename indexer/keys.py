"""Bytes in the store: one place that knows how keys and values look.

Keys are big-endian so that RocksDB's byte order is numeric order; array values are little-endian.

    family    key                                       value
    meta      "store" | "totals" | "source" | "refreshed" JSON
    offsets   partition name                            next offset u64
    ids       item id                                   ordinal u64
    items     ordinal u64                               ITEM_FIXED, raw u32 x F, leaf u32 x F, item id
    labels    number u32                                JSON, see indexer.labels; 0 is the empty set and not stored
    vectors   ordinal u64                               float16 x F x d
    content   ordinal u64                               the event's bytes as they came
    postings  facet u8, leaf u32, ordinal u64           empty
    leaves    facet u8, leaf u32                        LEAF_FIXED, centroid float32 x d
    sizes     facet u8, page u32                        size u32 x PAGE of leaves page * PAGE ...
    routes    facet u8, raw u32                         leaf u32 x candidates
    stats     ordinal u64                               epoch i32 x W, decayed f64 x W, value_sum f64, last_at i64,
                                                        count u32 x K
    pending   item id, 0, partition name, 0, offset u64 the engagement's bytes as they came
    journal   sequence u64                              JSON
    seen      sequence u64                              SEEN: digest of an event_id, stream time when it came
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.errors import StoreCorruptError

FAMILIES: Final = (
    "meta",
    "offsets",
    "ids",
    "items",
    "labels",
    "vectors",
    "content",
    "postings",
    "leaves",
    "sizes",
    "routes",
    "stats",
    "pending",
    "journal",
    "seen",
)
ADDED_LATER: Final = ("labels", "seen")  # stores of older releases may lack these
PAGE: Final = 256
U64: Final = struct.Struct(">Q")
FACET_U32: Final = struct.Struct(">BI")
POSTING: Final = struct.Struct(">BIQ")
ITEM_FIXED: Final = struct.Struct("<BxHIqqq")  # state, source, labels, created_at, occurred_at, offset
U32: Final = struct.Struct(">I")
SEEN: Final = struct.Struct("<16sq")
LEAF_FIXED: Final = struct.Struct("<BxxxII")  # state, version, size when marked

_NUMBERED_DTYPE: Final = np.dtype([("facet", "u1"), ("number", ">u4")])
_POSTING_DTYPE: Final = np.dtype([("facet", "u1"), ("leaf", ">u4"), ("ordinal", ">u8")])


class ItemState(IntEnum):
    """What an ordinal stands for."""

    ABSENT = 0
    LIVE = 1
    DELETED = 2


class LeafState(IntEnum):
    """Why a leaf may be out of bounds."""

    NORMAL = 0
    UNSPLITTABLE = 1  # all members are identical
    FEW_ITEMS = 2  # the facet holds no other leaf to merge with
    RETIRED = 3  # merged or split away; never stored


class ItemRecord(NamedTuple):
    """One row of ``items``; ``raw`` and ``leaf`` are (F,) uint32."""

    state: int
    source: int
    labels: int
    created_at: int
    occurred_at: int
    offset: int
    raw: npt.NDArray[np.uint32]
    leaf: npt.NDArray[np.uint32]
    item_id: str


class LeafRecord(NamedTuple):
    """One row of ``leaves``; ``centroid`` is (d,) float32."""

    state: int
    version: int
    marked_size: int
    centroid: npt.NDArray[np.float32]


def undecodable(family: str, data: bytes) -> StoreCorruptError:
    """What to raise for bytes that cannot be what they should be."""
    return StoreCorruptError(
        f"{len(data)} bytes in {family} ({data[:16].hex()}...) do not decode; restore a checkpoint or replay"
    )


def split(joined: bytes, width: int) -> list[bytes]:
    """Pieces of ``width`` bytes each."""
    pieces: list[bytes] = np.frombuffer(joined, f"V{width}").tolist() if joined else []  # four times a slice's speed
    return pieces


def u64(data: bytes, family: str) -> int:
    """One ordinal, offset or sequence number.

    Raises:
        StoreCorruptError: here and below, if it has another length.
    """
    if len(data) != U64.size:
        raise undecodable(family, data)
    return int.from_bytes(data, "big")


def u32(key: bytes, family: str) -> int:
    """The number of a set of labels."""
    if len(key) != U32.size:
        raise undecodable(family, key)
    return int.from_bytes(key, "big")


def numbered(key: bytes, family: str) -> int:
    """The number after the facet in a key of ``leaves``, ``sizes`` or ``routes``."""
    if len(key) != FACET_U32.size:
        raise undecodable(family, key)
    return int.from_bytes(key[1:], "big")


def numbered_arrays(many_keys: Sequence[bytes], family: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(n,) facet and (n,) number of n keys of ``leaves``, ``sizes`` or ``routes``."""
    joined = b"".join(many_keys)
    if len(joined) != FACET_U32.size * len(many_keys):
        raise undecodable(family, min(many_keys, key=len))
    rows = np.frombuffer(joined, _NUMBERED_DTYPE)
    return rows["facet"].astype(np.int64), rows["number"].astype(np.int64)


def u32_values(value: bytes, family: str) -> npt.NDArray[np.uint32]:
    """(n,) leaves of a route, or sizes of a page."""
    if len(value) % 4:
        raise undecodable(family, value)
    return np.frombuffer(value, "<u4")


def ordinals(many_keys: Sequence[bytes], family: str) -> npt.NDArray[np.int64]:
    """(n,) ordinals of n keys."""
    joined = b"".join(many_keys)
    if len(joined) != U64.size * len(many_keys):
        raise undecodable(family, min(many_keys, key=len))
    return np.frombuffer(joined, ">u8").astype(np.int64)


def ordinal_keys(ordinals: npt.NDArray[np.integer]) -> list[bytes]:
    """Keys of n ordinals."""
    joined = ordinals.astype(">u8").tobytes()
    return split(joined, 8)


def posting_keys(facet: int, leaves: npt.NDArray[np.integer], ordinals: npt.NDArray[np.integer]) -> list[bytes]:
    """Keys of n postings of one facet."""
    rows = np.empty(len(leaves), _POSTING_DTYPE)
    rows["facet"], rows["leaf"], rows["ordinal"] = facet, leaves, ordinals
    joined = rows.tobytes()
    return split(joined, POSTING.size)


def posting_arrays(
    keys: Sequence[bytes],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(facet, leaf, ordinal) of n posting keys."""
    joined = b"".join(keys)
    if len(joined) != len(keys) * POSTING.size:
        raise StoreCorruptError("a posting key has the wrong length; restore the store from a checkpoint or replay it")
    rows = np.frombuffer(joined, _POSTING_DTYPE)
    return rows["facet"].copy(), rows["leaf"].astype(np.int64), rows["ordinal"].astype(np.int64)


def item_values(
    states: npt.NDArray[np.integer],
    sources: npt.NDArray[np.integer],
    labels: npt.NDArray[np.integer],
    created_at: npt.NDArray[np.integer],
    occurred_at: npt.NDArray[np.integer],
    offsets: npt.NDArray[np.integer],
    raw: npt.NDArray[np.uint32],
    leaf: npt.NDArray[np.uint32],
    item_ids: Sequence[str],
) -> list[bytes]:
    """Values of n item records; ``raw`` and ``leaf`` are (n, F)."""
    facets = raw.shape[1]
    rows = np.zeros(len(item_ids), item_dtype(facets))
    rows["state"], rows["source"], rows["labels"] = states, sources, labels
    rows["created_at"], rows["occurred_at"], rows["offset"] = created_at, occurred_at, offsets
    rows["raw"], rows["leaf"] = raw, leaf
    fixed = split(rows.tobytes(), rows.dtype.itemsize)
    return [one + item_id.encode() for one, item_id in zip(fixed, item_ids, strict=True)]


def item_dtype(facets: int) -> np.dtype[np.void]:
    """The fixed part of an item record."""
    return np.dtype(
        [
            ("state", "u1"),
            ("_", "u1"),
            ("source", "<u2"),
            ("labels", "<u4"),
            ("created_at", "<i8"),
            ("occurred_at", "<i8"),
            ("offset", "<i8"),
            ("raw", "<u4", (facets,)),
            ("leaf", "<u4", (facets,)),
        ]
    )


def fixed_parts(values: Sequence[bytes], dtype: np.dtype[np.void], family: str) -> npt.NDArray[np.void]:
    """(n,) the first bytes of n values, which go on at will.

    Raises:
        StoreCorruptError: if one is shorter.
    """
    width = dtype.itemsize
    joined = b"".join([value[:width] for value in values])
    if len(joined) != width * len(values):
        raise StoreCorruptError(f"a record in {family} is shorter than {width} bytes; restore a checkpoint or replay")
    return np.frombuffer(joined, dtype)


def stats_dtype(windows: int, kinds: int) -> np.dtype[np.void]:
    """One counters record."""
    return np.dtype(
        [
            ("epochs", "<i4", (windows,)),
            ("decayed", "<f8", (windows,)),
            ("value_sum", "<f8"),
            ("last_at", "<i8"),
            ("counts", "<u4", (kinds,)),
        ]
    )


def item_record(value: bytes, facets: int) -> ItemRecord:
    """Decode one item record.

    Raises:
        StoreCorruptError: if the value is too short.
    """
    codes_at = ITEM_FIXED.size
    id_at = codes_at + 8 * facets
    if len(value) <= id_at:
        raise StoreCorruptError(f"an item record has {len(value)} bytes, needs more than {id_at}")
    codes = np.frombuffer(value, "<u4", 2 * facets, codes_at)
    state, source, labels, created_at, occurred_at, offset = ITEM_FIXED.unpack_from(value)
    item_id = value[id_at:].decode()
    return ItemRecord(state, source, labels, created_at, occurred_at, offset, codes[:facets], codes[facets:], item_id)


def leaf_value(record: LeafRecord) -> bytes:
    """Encode one leaf record."""
    fixed = LEAF_FIXED.pack(record.state, record.version, record.marked_size)
    return fixed + record.centroid.astype("<f4").tobytes()


def leaf_record(value: bytes) -> LeafRecord:
    """Decode one leaf record.

    Raises:
        StoreCorruptError: if the length is wrong.
    """
    if len(value) <= LEAF_FIXED.size or len(value) % 4:
        raise undecodable("leaves", value)
    state, version, marked_size = LEAF_FIXED.unpack_from(value)
    return LeafRecord(state, version, marked_size, np.frombuffer(value, "<f4", offset=LEAF_FIXED.size))


def leaf_dtype(dim: int) -> np.dtype[np.void]:
    """One leaf record; its centroid is (d,)."""
    return np.dtype(
        [("state", "u1"), ("_", "V3"), ("version", "<u4"), ("marked_size", "<u4"), ("centroid", "<f4", (dim,))]
    )


def pending_key(item_id: str, source: str, offset: int) -> bytes:
    """Key of one engagement that waits for its item: unique by source coordinates, ordered by them within an item."""
    return b"%b\0%b\0%b" % (item_id.encode(), source.encode(), U64.pack(offset))


def split_pending_key(key: bytes) -> tuple[str, str, int]:
    """(item id, source, offset). Item ids may hold any byte, so it is read from the end.

    Raises:
        StoreCorruptError: if there are no such three parts.
    """
    item_id, found, source = key[:-9].rpartition(b"\0")
    if not found or not item_id or key[-9] != 0:
        raise undecodable("pending", key)
    return item_id.decode(), source.decode(), u64(key[-8:], "pending")
