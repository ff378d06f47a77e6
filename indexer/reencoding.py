"""An image of a store made the store of another model: its live items encoded anew, filed and balanced.

What does not depend on the model stays as it is: ids and ordinals, content, labels, counters, what waits, event ids
that were seen, offsets. Where both models' events were applied up to the same offsets, the outcome means what applying
all events with the new model would have meant (:mod:`indexer.logical_state`).

All is done in place, in a directory that nobody else uses: if it is cut short, the image is of no use any more, and
the next attempt begins with another one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.drift import Drift
from indexer.failpoints import failpoint
from indexer.index import Index
from indexer.item_changes import ADOPTION
from indexer.keys import ItemState
from indexer.order import Order
from indexer.postings import ItemPlan, Opened
from indexer.rebalance.bounds import bounds_for
from indexer.rocksdb import empty_families
from indexer.routing import route
from indexer.store import Store, now_ms
from indexer.view import LiveView
from schemas.config import Config
from schemas.errors import StoreCorruptError, StoreMismatchError
from schemas.refresh import Refreshed
from schemas.store import StoreMeta, Totals

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

Encode = Callable[[list[bytes]], tuple[npt.NDArray[np.float16], U32]]
"""Facet embeddings (n, F, d) and raw indices (n, F) of the bytes of n item events."""

_FILED: Final = ("postings", "leaves", "sizes", "routes", "journal")
"""Where items are filed, and what was done to the leaves there."""
_AT_ONCE: Final = 1_024
"""Items encoded at a time: their content is in memory."""


@dataclass(frozen=True, slots=True)
class _Coded:
    """The live items: (n,) ordinals ascending, (n, F) raw indices, and how they differ from what they were."""

    ordinals: I64
    raw: U32
    drift: Drift


def reencode(
    path: Path,
    meta: StoreMeta,
    codewords: F32,
    encode: Encode,
    config: Config,
    progress: Callable[[int], None] = lambda _: None,
) -> Refreshed:
    """Make the image at ``path`` a store of ``meta``, balanced.

    Args:
        path: where :meth:`indexer.store.Store.checkpoint` put it.
        meta: what the new model makes of a store.
        codewords: (F, L, M, d) float32 of the new model.
        encode: the new model.
        config: limits and bounds.
        progress: told items as they are encoded.

    Raises:
        StoreMismatchError: the image counts other half-lives.
        StoreCorruptError: a record of it does not decode, or is missing.
        StoreError: the disk refuses.
    """
    began = time.monotonic()
    with Store.open(path) as store:
        before = store.meta()
    if before.half_lives_s != meta.half_lives_s:
        raise StoreMismatchError(
            f"{path} counts engagements with half-lives of {list(before.half_lives_s)} s, {list(meta.half_lives_s)} s "
            "are wanted: what was counted cannot be counted anew; put counters.half_lives_s back, or build the "
            "generation from the topics with `facetstream generation create`"
        )
    empty_families(path, _FILED)
    with Store.open(path) as store:
        totals = store.totals().model_copy(
            update={"next_leaf": [0] * meta.facets, "splits": 0, "merges": 0, "history": secrets.token_hex(8)}
        )
        coded = _encode_all(store, before, meta, encode, progress)
        failpoint("refresh.encoded")
        leaves = _file(store, meta, totals, codewords, coded, config)
        _describe_items(store, before, meta, coded, leaves)
        write = store.batch()
        write.put("meta", b"store", meta.model_dump_json().encode())
        write.totals(totals)
        store.write(write)
    if config.rebalance.enabled:
        with Index.open(path, meta, codewords, config) as index:
            index.compactor(config).run_until_idle()
    done = Refreshed(
        before=before.model_hash,
        before_version=before.model_version,
        items=len(coded.ordinals),
        seconds=round(time.monotonic() - began, 3),
        at_ms=now_ms(),
        facets=coded.drift.facets(),
    )
    with Store.open(path) as store:
        totals = store.totals()
        write = store.batch()
        write.put("meta", b"refreshed", done.model_dump_json().encode())
        write.note(totals, op="refresh", **done.model_dump(mode="json", exclude={"at_ms"}))
        write.totals(totals)
        store.write(write)
    return done


def _encode_all(
    store: Store, before: StoreMeta, meta: StoreMeta, encode: Encode, progress: Callable[[int], None]
) -> _Coded:
    """Encode every live item and store its embeddings."""
    drift, dtype = Drift(before, meta), keys.item_dtype(before.facets)
    ordinals, raws = [np.empty(0, np.int64)], [np.empty((0, meta.facets), np.uint32)]
    for many_keys, values in store.scan_many("items"):
        rows = keys.fixed_parts(values, dtype, "items")
        live = np.flatnonzero(rows["state"] == ItemState.LIVE)
        for at in range(0, len(live), _AT_ONCE):
            some = live[at : at + _AT_ONCE]
            some_keys = [many_keys[row] for row in some.tolist()]
            vectors, raw = encode(_all_there(store, "content", some_keys))
            were = _all_there(store, "vectors", some_keys)
            for value in were:
                if len(value) != 2 * before.facets * before.dim:
                    raise keys.undecodable("vectors", value)
            drift.add(were, rows["raw"][some], vectors, raw)
            write = store.batch()
            write.put_many("vectors", some_keys, keys.split(vectors.tobytes(), 2 * meta.facets * meta.dim))
            store.write(write)
            ordinals.append(keys.ordinals(some_keys, "items"))
            raws.append(raw)
            progress(len(some))
    return _Coded(np.concatenate(ordinals), np.concatenate(raws), drift)


def _all_there(store: Store, family: str, many_keys: list[bytes]) -> list[bytes]:
    found = [value for value in store.get_many(family, many_keys) if value is not None]
    if len(found) < len(many_keys):
        raise StoreCorruptError(
            f"{store.path} lacks {len(many_keys) - len(found)} of {len(many_keys)} records in {family}; restore a "
            "checkpoint or replay"
        )
    return found


def _file(store: Store, meta: StoreMeta, totals: Totals, codewords: F32, coded: _Coded, config: Config) -> U32:
    """(n, F) the leaf of each item: routes and leaves as if all raw indices had come in one batch."""
    leaves = np.zeros(coded.raw.shape, np.uint32)
    view = LiveView(meta, totals, codewords, Order())
    room = max(1, bounds_for(config.rebalance, totals.items_live, totals.bounds)[1] // ADOPTION)
    none = np.empty(0, np.int64), np.empty(0, np.int64)
    for facet, its in enumerate(view.facets):
        # Nothing is routed yet, so no item is near to one of several leaves: embeddings are not asked for.
        routed = route(its, coded.raw[:, facet], np.empty((0, meta.dim), np.float16), 0, room)
        leaves[:, facet] = routed.leaves
        write = store.batch()
        filed = routed.leaves, coded.ordinals
        ItemPlan(meta.facets).add_facet(facet, write, view, out=none, into=filed, opened=Opened.of(its, routed, 0))
        store.write(write)
        totals.next_leaf[facet] = routed.opened
    return leaves


def _describe_items(store: Store, before: StoreMeta, meta: StoreMeta, coded: _Coded, leaves: U32) -> None:
    """Item records with the new codes and leaves; those of deleted items have none."""
    old, new = keys.item_dtype(before.facets), keys.item_dtype(meta.facets)
    done = 0
    for many_keys, values in store.scan_many("items"):  # as of now, whatever is written meanwhile
        rows = keys.fixed_parts(values, old, "items")
        changed = np.zeros(len(rows), new)
        for name in ("state", "source", "labels", "created_at", "occurred_at", "offset"):
            changed[name] = rows[name]
        live = np.flatnonzero(rows["state"] == ItemState.LIVE)
        changed["raw"][live] = coded.raw[done : done + len(live)]
        changed["leaf"][live] = leaves[done : done + len(live)]
        done += len(live)
        fixed = keys.split(changed.tobytes(), new.itemsize)
        write = store.batch()
        names = [value[old.itemsize :] for value in values]
        write.put_many("items", many_keys, [one + name for one, name in zip(fixed, names, strict=True)])
        store.write(write)
