"""Plans into the store: each one atomic write, revalidated against what happened since it was made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from indexer import keys
from indexer.failpoints import failpoint
from indexer.keys import LeafRecord, LeafState
from indexer.postings import put_sizes
from indexer.rebalance.plan import MarkPlan, MergePlan, Plan, SplitPlan
from indexer.routing import nearest_of
from indexer.store import now_ms
from indexer.view import FacetView, LiveView
from indexer.write_batch import Batch
from indexer.writer import IndexWriter
from schemas.store import Totals

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]

_MAX_CHANGED = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one plan: ``applied`` is False where the leaf had changed and the plan was dropped."""

    op: str
    applied: bool
    moved: int = 0


def apply_plan(writer: IndexWriter, plan: Plan, bounds: tuple[int, int]) -> Outcome:
    """Apply one plan, or drop it if its leaf is no longer what it was.

    Raises:
        StoreError: if the disk refuses; nothing is changed then.
    """
    match plan:
        case SplitPlan():
            return _apply_split(writer, plan, bounds)
        case MergePlan():
            return _apply_merge(writer, plan)
        case MarkPlan():
            return _apply_mark(writer, plan)


def _current(facet: FacetView, leaf: int, version: int) -> bool:
    return bool(facet.leaves["alive"][leaf]) and int(facet.leaves["version"][leaf]) == version


def _apply_split(writer: IndexWriter, plan: SplitPlan, bounds: tuple[int, int]) -> Outcome:
    began = time.perf_counter()
    view, number = writer.view, plan.facet
    facet = view.facets[number]
    if not _current(facet, plan.leaf, plan.version):
        return Outcome("split", applied=False)
    members = np.sort(facet.members.row(plan.leaf))
    labels = _labels_now(view, plan, members)
    children = len(plan.centroids)
    sizes = np.bincount(labels, minlength=children)
    changed = len(np.setxor1d(members, plan.members, assume_unique=True))
    if changed > _MAX_CHANGED * len(plan.members) or sizes.max() > bounds[1] or sizes.min() < min(bounds[0], 1):
        return Outcome("split", applied=False)

    totals = view.totals.model_copy(deep=True)
    new = totals.next_leaf[number] + np.arange(children)
    totals.next_leaf[number] += children
    totals.splits += 1
    leaves_of = new[labels]
    write = writer.store.batch()
    for leaf, centroid in zip(new.tolist(), plan.centroids, strict=True):
        write.put(
            "leaves",
            keys.FACET_U32.pack(number, leaf),
            keys.leaf_value(LeafRecord(LeafState.NORMAL, 0, 0, centroid)),
        )
    write.delete_many("leaves", [keys.FACET_U32.pack(number, plan.leaf)])
    routes = _split_routes(view, plan, members, labels, new)
    _put_routes(write, number, routes)
    _put_moves(write, view, number, members, np.full(len(members), plan.leaf), leaves_of)
    _journal(
        write,
        totals,
        op="split",
        facet=number,
        leaf=plan.leaf,
        into=new.tolist(),
        size=len(members),
        sizes=sizes.tolist(),
        why=f"size above {bounds[1]}",
        began=began,
    )
    write.totals(totals)
    failpoint("split.before")
    writer.store.write(write)
    failpoint("split.after")

    with view.lock:
        for leaf, centroid in zip(new.tolist(), plan.centroids, strict=True):
            facet.add_leaf(leaf, centroid)
        held, vectors, heats = view.members.take(int(facet.members.rows(np.array(plan.leaf))))
        facet.retire_leaf(plan.leaf)
        rows = facet.members.rows(leaves_of[np.searchsorted(members, held)])
        view.members.append(rows, held, vectors, heats)
        view.sort(np.unique(rows))
        _show_routes(facet, routes)
        raws = np.repeat(np.fromiter(routes, np.uint32), [len(leaves) for leaves in routes.values()])
        flat = np.concatenate(list(routes.values())) if routes else np.empty(0, np.uint32)
        mine = flat >= new[0]
        facet.raws.append(flat[mine].astype(np.int64), raws[mine])
        view.items["leaf"][members, number] = leaves_of
        view.totals = totals
    return Outcome("split", applied=True, moved=len(members))


def _labels_now(view: LiveView, plan: SplitPlan, members: U32) -> I64:
    """(n,) child of each present member: as planned, newcomers to the nearest centroid."""
    at = np.searchsorted(plan.members, members)
    at_most = np.minimum(at, len(plan.members) - 1)
    planned = plan.members[at_most] == members
    labels = np.where(planned, plan.labels[at_most], -1)
    late = np.flatnonzero(~planned)
    if len(late):
        vectors = view.vectors(members[late].astype(np.int64), plan.facet).astype(np.float32)
        children = len(plan.centroids)
        labels[late] = nearest_of(
            vectors, plan.centroids, np.tile(np.arange(children), len(late)), np.full(len(late), children)
        )
    return labels


def _split_routes(view: LiveView, plan: SplitPlan, members: U32, labels: I64, new: I64) -> dict[int, U32]:
    """Candidates of each raw index that led to the leaf: the children that hold its members, else the nearest."""
    facet = view.facets[plan.facet]
    raws = facet.raws.row(plan.leaf)
    pairs = np.unique(np.stack([view.items["raw"][members, plan.facet].astype(np.int64), new[labels]], 1), axis=0)
    held: dict[int, list[int]] = {}
    for raw, leaf in pairs.tolist():
        held.setdefault(raw, []).append(leaf)
    bare = np.array([raw for raw in raws.tolist() if raw not in held], np.int64)
    if len(bare):
        children = len(new)
        nearest = nearest_of(
            facet.reconstruct(bare),
            plan.centroids,
            np.tile(np.arange(children), len(bare)),
            np.full(len(bare), children),
        )
        held.update({raw: [leaf] for raw, leaf in zip(bare.tolist(), new[nearest].tolist(), strict=True)})
    out: dict[int, U32] = {}
    for raw in raws.tolist():
        others = facet.routes.row(raw)
        out[raw] = np.concatenate([others[others != plan.leaf], np.array(held[raw], np.uint32)])
    return out


def _apply_merge(writer: IndexWriter, plan: MergePlan) -> Outcome:
    began = time.perf_counter()
    view, number = writer.view, plan.facet
    facet = view.facets[number]
    involved = (plan.target, *plan.leaves)
    if not all(_current(facet, leaf, version) for leaf, version in zip(involved, plan.versions, strict=True)):
        return Outcome("merge", applied=False)
    gone = np.array(plan.leaves, np.int64)
    members, counts = facet.members.gather(gone)
    came_from = np.repeat(gone, counts)
    target_size = int(facet.sizes()[plan.target])
    joint = target_size + len(members)
    centroids, weights = facet.leaves["centroid"], np.concatenate([[target_size], counts]).astype(np.float64)
    centroid = centroids[plan.target].copy()
    if joint:
        centroid = (weights @ centroids[np.array(involved)] / joint).astype(np.float32)

    totals = view.totals.model_copy(deep=True)
    totals.merges += 1
    write = writer.store.batch()
    record = LeafRecord(LeafState.NORMAL, plan.versions[0] + 1, 0, centroid)
    write.put("leaves", keys.FACET_U32.pack(number, plan.target), keys.leaf_value(record))
    write.delete_many("leaves", [keys.FACET_U32.pack(number, leaf) for leaf in plan.leaves])
    raws = np.unique(facet.raws.gather(gone)[0])
    routes = {raw: _without(facet.routes.row(raw), gone, plan.target) for raw in raws.tolist()}
    _put_routes(write, number, routes)
    _put_moves(write, view, number, members, came_from, np.full(len(members), plan.target))
    _journal(
        write,
        totals,
        op="merge",
        facet=number,
        leaf=plan.target,
        **{"from": list(plan.leaves)},
        sizes=[target_size, *counts.tolist()],
        size=joint,
        why="size below the lower bound",
        began=began,
    )
    write.totals(totals)
    failpoint("merge.before")
    writer.store.write(write)
    failpoint("merge.after")

    with view.lock:
        target = facet.members.rows(np.array([plan.target]))
        for leaf in plan.leaves:
            held, vectors, heats = view.members.take(int(facet.members.rows(np.array(leaf))))
            view.members.append(np.repeat(target, len(held)), held, vectors, heats)
            facet.retire_leaf(leaf)
        view.sort(target)
        had = facet.raws.row(plan.target)
        facet.raws.replace(plan.target, np.union1d(had, raws).astype(np.uint32))
        _show_routes(facet, routes)
        facet.set_centroids(np.array([plan.target]), centroid)
        facet.leaves["version"][plan.target] = record.version
        facet.leaves["state"][plan.target] = LeafState.NORMAL
        facet.leaves["marked_size"][plan.target] = 0
        view.items["leaf"][members, number] = plan.target
        view.totals = totals
    return Outcome("merge", applied=True, moved=len(members))


def _without(leaves: U32, gone: I64, target: int) -> U32:
    kept = leaves[~np.isin(leaves, gone)]
    return kept if target in kept else np.append(kept, np.uint32(target))


def _apply_mark(writer: IndexWriter, plan: MarkPlan) -> Outcome:
    view = writer.view
    facet = view.facets[plan.facet]
    if not _current(facet, plan.leaf, plan.version):
        return Outcome("mark", applied=False)
    size = int(facet.sizes()[plan.leaf])
    version = plan.version + 1
    write = writer.store.batch()
    record = LeafRecord(plan.state, version, size, facet.leaves["centroid"][plan.leaf])
    write.put("leaves", keys.FACET_U32.pack(plan.facet, plan.leaf), keys.leaf_value(record))
    totals = view.totals.model_copy(deep=True)
    _journal(write, totals, op="mark", facet=plan.facet, leaf=plan.leaf, state=plan.state.name.lower(), size=size)
    write.totals(totals)
    failpoint("mark.before")
    writer.store.write(write)
    failpoint("mark.after")
    with view.lock:
        facet.leaves["state"][plan.leaf] = plan.state
        facet.leaves["version"][plan.leaf] = version
        facet.leaves["marked_size"][plan.leaf] = size
        view.totals = totals
    return Outcome("mark", applied=True)


def apply_bounds(writer: IndexWriter, bounds: tuple[int, int]) -> None:
    """Put new bounds in force, with a journal entry."""
    view = writer.view
    totals = view.totals.model_copy(deep=True)
    write = writer.store.batch()
    _journal(write, totals, op="bounds", before=list(totals.bounds), after=list(bounds), live=totals.items_live)
    totals.bounds = bounds
    write.totals(totals)
    failpoint("bounds.before")
    writer.store.write(write)
    failpoint("bounds.after")
    with view.lock:
        view.totals = totals


def _put_routes(write: Batch, facet: int, routes: dict[int, U32]) -> None:
    for raw, leaves in routes.items():
        write.put("routes", keys.FACET_U32.pack(facet, raw), leaves.astype("<u4").tobytes())


def _show_routes(facet: FacetView, routes: dict[int, U32]) -> None:
    for raw, leaves in routes.items():
        facet.routes.replace(raw, leaves)


def _put_moves(write: Batch, view: LiveView, facet: int, members: U32, old: I64, new: I64) -> None:
    """Postings, item records and size pages of members that change leaves; all (n,)."""
    if not len(members):
        return
    write.delete_many("postings", keys.posting_keys(facet, old, members))
    write.put_empty("postings", keys.posting_keys(facet, new, members))
    items = view.items
    leaf = items["leaf"][members].copy()
    leaf[:, facet] = new
    values = keys.item_values(
        items["state"][members],
        items["source"][members],
        items["created_at"][members],
        items["occurred_at"][members],
        items["offset"][members],
        items["raw"][members],
        leaf,
        view.ids.of(members),
    )
    write.put_many("items", keys.ordinal_keys(members), values)
    change = np.repeat([1, -1], [len(members), len(members)])
    put_sizes(write, facet, view.facets[facet].sizes(), np.concatenate([new, old]), change)


def _journal(write: Batch, totals: Totals, *, began: float | None = None, **entry: Any) -> None:
    """Add an entry: what was done, to what, why, sizes before and after, milliseconds."""
    if began is not None:
        entry["ms"] = round((time.perf_counter() - began) * 1_000, 3)
    write.journal(totals.journal_seq, orjson.dumps({"seq": totals.journal_seq, "at_ms": now_ms(), **entry}))
    totals.journal_seq += 1
