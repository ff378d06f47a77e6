"""Invariants I1 to I7, checked on a store as it lies on disk. The tests' oracle.

I1  every live item has its posting in each facet, every posting belongs to a live item; ids, vectors, content match
I2  leaf sizes equal the number of postings; sums per facet equal the number of live items
I3  every route target is a live leaf, every live leaf is reachable, an item's leaf is among its code's candidates
I4  sizes lie within bounds, or the leaf is marked with the reason and the size at which it was marked
I5  no item and no pending engagement comes from beyond the offsets, stored now or before an explicit reset
I6  model and codebook hash in the store equal the artifact's
I7  encoding a sample of items again gives the stored vectors' codes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from indexer import keys
from indexer.keys import ItemState, LeafState
from indexer.rebalance.plan import RETRY_GROWTH
from indexer.store import Store
from schemas.replies import VerifyChecked, VerifyReply, Violation
from schemas.store import StoreMeta, Totals

I64 = npt.NDArray[np.int64]
Invariant = Literal["I1", "I2", "I3", "I4", "I5", "I6", "I7"]

_SHOWN = 5


@dataclass(slots=True)
class _Findings:
    """Collects violations; shows the first few of each invariant, counts all."""

    shown: list[Violation] = field(default_factory=list)
    total: int = 0

    def add(self, invariant: Invariant, detail: str, count: int = 1) -> None:
        self.total += count
        if sum(violation.invariant == invariant for violation in self.shown) < _SHOWN:
            more = f" (and {count - 1} more)" if count > 1 else ""
            self.shown.append(Violation(invariant=invariant, detail=detail + more))

    def check_none(self, invariant: Invariant, bad: I64, describe: Callable[[int], str]) -> None:
        if len(bad):
            self.add(invariant, describe(int(bad[0])), len(bad))


@dataclass(frozen=True, slots=True)
class _Items:
    ordinals: I64
    state: npt.NDArray[np.uint8]
    source: I64
    labels: I64
    offset: I64
    raw: I64
    leaf: I64
    ids: dict[str, int]

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.state == ItemState.LIVE)


Reencode = Callable[[list[bytes]], npt.NDArray[np.uint32]]
"""Event bytes of n items -> (n, F) raw indices."""


def verify(
    store: Store,
    *,
    expected: StoreMeta | None = None,
    reencode: Reencode | None = None,
    sample: int = 1_000,
    allow_unbalanced: bool = False,
) -> VerifyReply:
    """Check the invariants.

    Args:
        store: open for writing with the writer at rest, or a secondary between two catch-ups.
        expected: what the artifact at hand makes of a store (I6); None leaves that out.
        reencode: the encoder (I7); None leaves that out.
        sample: items encoded again, spread evenly.
        allow_unbalanced: leaves out of bounds are counted as awaiting the compactor instead of violating I4, for
            looking at a store while a daemon works on it.
    """
    findings = _Findings()
    notes: list[str] = []
    meta, totals = store.meta(), store.totals()
    items = _read_items(store, meta)
    _check_columns(store, items, findings)
    live = int(items.live.sum())
    for said, stored, what in (
        (totals.items_live, live, "live"),
        (totals.items_deleted, len(items.state) - live, "deleted"),
    ):
        if said != stored:
            findings.add("I2", f"totals say {said} {what} items, {stored} are stored")

    postings = leaves = routes = awaiting = 0
    for facet in range(meta.facets):
        counts = _check_facet(store, meta, facet, items, totals.bounds, findings, allow_unbalanced=allow_unbalanced)
        postings, leaves, routes, awaiting = (
            a + b for a, b in zip((postings, leaves, routes, awaiting), counts, strict=True)
        )
    _check_offsets(store, items, totals, findings)
    if expected is None:
        notes.append("I6 not checked: no artifact given")
    else:
        for name in ("model_hash", "codebook_hash", "facets", "layers", "codewords", "dim"):
            if getattr(meta, name) != getattr(expected, name):
                findings.add(
                    "I6",
                    f"{name} is {getattr(meta, name)!r} in the store, {getattr(expected, name)!r} in the artifact",
                )
    reencoded = 0
    if reencode is None:
        notes.append("I7 not checked: no artifact given")
    elif expected is None or expected.model_hash == meta.model_hash:
        reencoded = _check_codes(store, items, reencode, sample, findings)
    checked = VerifyChecked(
        items=int(items.live.sum()),
        postings=postings,
        leaves=leaves,
        routes=routes,
        reencoded=reencoded,
        awaiting=awaiting,
    )
    return VerifyReply(
        ok=findings.total == 0,
        checked=checked,
        violations=findings.shown,
        violations_total=findings.total,
        notes=notes,
    )


def _read_items(store: Store, meta: StoreMeta) -> _Items:
    ordinals: list[int] = []
    values: list[bytes] = []
    ids: dict[str, int] = {}
    dtype = keys.item_dtype(meta.facets)
    for key, value in store.scan("items"):
        if len(value) <= dtype.itemsize:
            raise keys.undecodable("items", value)
        ordinal = keys.u64(key, "items")
        ordinals.append(ordinal)
        values.append(value[: dtype.itemsize])
        ids[value[dtype.itemsize :].decode()] = ordinal
    rows = np.frombuffer(b"".join(values), dtype)
    return _Items(
        np.array(ordinals, np.int64),
        rows["state"].copy(),
        rows["source"].astype(np.int64),
        rows["labels"].astype(np.int64),
        rows["offset"].astype(np.int64),
        rows["raw"].astype(np.int64),
        rows["leaf"].astype(np.int64),
        ids,
    )


def _check_columns(store: Store, items: _Items, findings: _Findings) -> None:
    """I1 for the families keyed by item: ids, vectors, content, stats."""
    stored = {key.decode(): keys.u64(value, "ids") for key, value in store.scan("ids")}
    for item_id in sorted(stored.keys() ^ items.ids.keys())[:_SHOWN]:
        findings.add("I1", f"item {item_id!r} is in {'ids' if item_id in stored else 'items'} only")
    differing = [item_id for item_id, ordinal in stored.items() if items.ids.get(item_id, ordinal) != ordinal]
    if differing:
        findings.add("I1", f"item {differing[0]!r} has two ordinals", len(differing))
    known = len(store.labels())
    findings.check_none(
        "I1", items.ordinals[items.labels >= known], lambda o: f"ordinal {o} has labels that are not there, of {known}"
    )
    live = items.ordinals[items.live]
    for family in ("vectors", "content"):
        have = keys.ordinals(list(store.scan_keys(family)), family)
        for ordinal in np.setdiff1d(live, have)[:_SHOWN].tolist():
            findings.add("I1", f"live ordinal {ordinal} has no {family}")
        for ordinal in np.setdiff1d(have, live)[:_SHOWN].tolist():
            findings.add("I1", f"{family} of ordinal {ordinal}, which is not live")
    counted = keys.ordinals(list(store.scan_keys("stats")), "stats")
    findings.check_none(
        "I1",
        np.setdiff1d(counted, items.ordinals),
        lambda o: f"counters of ordinal {o}, which does not exist",
    )


def _check_facet(
    store: Store,
    meta: StoreMeta,
    facet: int,
    items: _Items,
    bounds: tuple[int, int],
    findings: _Findings,
    *,
    allow_unbalanced: bool,
) -> tuple[int, int, int, int]:
    """I1 to I4 of one facet; returns how many postings, leaves, routes and awaiting leaves there are."""
    prefix = bytes([facet])
    _, posting_leaf, posting_ordinal = keys.posting_arrays(list(store.scan_keys("postings", prefix)))
    live = items.live
    have = (posting_leaf << 32) | posting_ordinal
    want = (items.leaf[live, facet] << 32) | items.ordinals[live]

    def place(packed: int) -> str:
        return f"ordinal {packed & 0xFFFFFFFF} in facet {facet} leaf {packed >> 32}"

    findings.check_none("I1", np.setdiff1d(want, have), lambda p: f"{place(p)} has no posting")
    findings.check_none("I1", np.setdiff1d(have, want), lambda p: f"posting of {place(p)} belongs to no live item")

    records = {keys.numbered(key, "leaves"): keys.leaf_record(value) for key, value in store.scan("leaves", prefix)}
    leaf_ids = np.array(sorted(records), np.int64)
    top = int(max(leaf_ids.max(initial=-1), posting_leaf.max(initial=-1))) + 1
    counted = np.bincount(posting_leaf, minlength=top)
    stored = np.zeros(max(top, 1), np.int64)
    for key, value in store.scan("sizes", prefix):
        at = keys.numbered(key, "sizes") * keys.PAGE
        page = keys.u32_values(value, "sizes").astype(np.int64)
        if at + len(page) > len(stored):
            stored = np.concatenate([stored, np.zeros(at + len(page) - len(stored), np.int64)])
        stored[at : at + len(page)] = page
    wanted = np.zeros(len(stored), np.int64)
    wanted[: len(counted)] = counted
    findings.check_none(
        "I2",
        np.flatnonzero(stored != wanted),
        lambda leaf: f"facet {facet} leaf {leaf}: counter {stored[leaf]}, postings {wanted[leaf]}",
    )
    if len(have) != int(live.sum()):
        findings.add("I2", f"facet {facet} holds {len(have)} postings for {int(live.sum())} live items")

    routes = _check_routes(store, meta, facet, items, leaf_ids, findings)
    awaiting = 0
    low, high = bounds
    for leaf, record in sorted(records.items()):
        size = int(wanted[leaf])
        if low <= size <= high or _excused(record, size, len(records), low):
            continue
        if allow_unbalanced:
            awaiting += 1
        else:
            state = LeafState(record.state).name.lower()
            findings.add("I4", f"facet {facet} leaf {leaf} holds {size}, bounds are {low} to {high}, state {state}")
    return len(have), len(records), routes, awaiting


def _excused(record: keys.LeafRecord, size: int, leaves: int, low: int) -> bool:
    if record.state == LeafState.UNSPLITTABLE:
        return size <= record.marked_size * RETRY_GROWTH
    return record.state == LeafState.FEW_ITEMS and leaves == 1 and size < low


def _check_routes(store: Store, meta: StoreMeta, facet: int, items: _Items, leaf_ids: I64, findings: _Findings) -> int:
    """I3."""
    raws: list[int] = []
    targets: list[npt.NDArray[np.uint32]] = []
    for key, value in store.scan("routes", bytes([facet])):
        raws.append(keys.numbered(key, "routes"))
        targets.append(keys.u32_values(value, "routes"))
    counts = np.array([len(target) for target in targets], np.int64)
    flat = np.concatenate(targets).astype(np.int64) if targets else np.empty(0, np.int64)
    raw_of = np.repeat(np.array(raws, np.int64), counts)
    findings.check_none(
        "I3",
        np.flatnonzero(~np.isin(flat, leaf_ids)),
        lambda at: f"facet {facet}: raw index {raw_of[at]} leads to leaf {flat[at]}, which does not exist",
    )
    findings.check_none(
        "I3", np.setdiff1d(leaf_ids, flat), lambda leaf: f"facet {facet} leaf {leaf} is reached by no route"
    )
    if raws and max(raws) >= meta.codewords**meta.layers:
        findings.add("I3", f"facet {facet}: route of raw index {max(raws)}, which the codebook cannot produce")
    live = items.live
    pairs = (items.raw[live, facet] << 32) | items.leaf[live, facet]
    lost = np.flatnonzero(~np.isin(pairs, (raw_of << 32) | flat))
    ordinals = items.ordinals[live]
    findings.check_none(
        "I3",
        lost,
        lambda at: (
            f"facet {facet}: ordinal {ordinals[at]} with raw index {pairs[at] >> 32} "
            f"lies in leaf {pairs[at] & 0xFFFFFFFF}, not among that index's candidates"
        ),
    )
    return len(flat)


def _check_offsets(store: Store, items: _Items, totals: Totals, findings: _Findings) -> None:
    """I5, as far as the store alone can show."""
    sources, offsets = totals.sources, store.offsets()
    for name, before in totals.reset_from.items():
        offsets[name] = max(before, offsets.get(name, 0))
    if len(items.source) and items.source.max() >= len(sources):
        findings.add("I5", f"an item names source {items.source.max()}, only {len(sources)} are known")
        return
    for number, source in enumerate(sources):
        mine = items.source == number
        beyond = np.flatnonzero(mine & (items.offset >= offsets.get(source, 0)))
        findings.check_none(
            "I5",
            beyond,
            lambda at, s=source: (  # type: ignore[misc]
                f"ordinal {items.ordinals[at]} came from {s} offset {items.offset[at]}, "
                f"next offset is {offsets.get(s, 0)}"
            ),
        )
    for key in store.scan_keys("pending"):
        item_id, source, offset = keys.split_pending_key(key)
        if offset >= offsets.get(source, 0):
            findings.add("I5", f"pending engagement {source} offset {offset}, next offset is {offsets.get(source, 0)}")
        if item_id in items.ids:
            findings.add("I1", f"an engagement with item {item_id!r} still waits although the item is known")


def _check_codes(store: Store, items: _Items, reencode: Reencode, sample: int, findings: _Findings) -> int:
    """I7 on items spread evenly over the ordinals."""
    live = np.flatnonzero(items.live)
    chosen = (
        live[np.unique(np.linspace(0, len(live) - 1, min(sample, len(live))).astype(np.int64))] if len(live) else live
    )
    content = store.get_many("content", keys.ordinal_keys(items.ordinals[chosen]))
    there = np.array([value is not None for value in content], np.bool_)
    chosen = chosen[there]
    if not len(chosen):
        return 0
    again = reencode([value for value in content if value is not None])
    findings.check_none(
        "I7",
        np.flatnonzero((again != items.raw[chosen]).any(1)),
        lambda at: (
            f"ordinal {items.ordinals[chosen[at]]} encodes to {again[at].tolist()}, "
            f"stored is {items.raw[chosen[at]].tolist()}"
        ),
    )
    return len(chosen)
