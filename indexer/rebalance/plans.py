"""What rebalancing is about to do: computed from the view by anybody, applied by the single writer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from indexer.keys import LeafState
from indexer.view import FacetView

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """One leaf into several.

    Attributes:
        version: of the leaf when planned; another one at applying voids the plan.
        members: (n,) ordinals, ascending.
        labels: (n,) child of each member.
        centroids: (k, d) float32.
        step: members moved in one write at most, unless a single child holds more.
        plan_ms: what planning took; here and below.
    """

    facet: int
    leaf: int
    version: int
    members: U32
    labels: I64
    centroids: F32
    step: int
    plan_ms: float = 0.0

    def after(self, children: int) -> SplitPlan:
        """What is left when the first ``children`` have left the leaf."""
        rest = self.labels >= children
        return replace(
            self,
            version=self.version + 1,
            members=self.members[rest],
            labels=self.labels[rest] - children,
            centroids=self.centroids[children:],
            plan_ms=0.0,
        )


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Small leaves into ``target``. ``versions`` are those of (target, *leaves) when planned."""

    facet: int
    target: int
    leaves: tuple[int, ...]
    versions: tuple[int, ...]
    plan_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class MarkPlan:
    """A leaf's state changes: it can't be brought within bounds, or no longer needs the mark."""

    facet: int
    leaf: int
    version: int
    state: LeafState
    plan_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class RecenterPlan:
    """Leaves (m,) that grew get the means of their members as centroids, (m, d) float32, of (m,) members."""

    facet: int
    leaves: I64
    versions: I64
    sizes: I64
    centroids: F32
    plan_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ReassignPlan:
    """Members near a new border change to a nearer leaf.

    Attributes:
        members: (n,) distinct ordinals.
        old, new: (n,) leaves they leave and enter.
        versions: leaf -> version when planned, of all leaves in ``old`` and ``new``.
        checked: members whose distances were compared.
        cause: the leaf whose split moved the border.
    """

    facet: int
    members: I64
    old: I64
    new: I64
    versions: dict[int, int]
    checked: int
    cause: int
    plan_ms: float = 0.0


Plan = SplitPlan | MergePlan | MarkPlan | RecenterPlan | ReassignPlan


@dataclass(frozen=True, slots=True)
class Parted:
    """A leaf that was split: its id and centroid, and the leaves that came of it."""

    facet: int
    leaf: int
    centroid: F32
    children: I64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one plan.

    Attributes:
        applied: False where the leaf had changed and the plan was dropped.
        moved: members that changed leaves.
        checked: members whose place was looked at again.
        plan_ms, apply_ms: what planning took, and what the writer took.
        rest: what is still to be done of it.
        parted: of a split.
    """

    op: str
    applied: bool
    moved: int = 0
    checked: int = 0
    plan_ms: float = 0.0
    apply_ms: float = 0.0
    rest: Plan | None = None
    parted: Parted | None = None


def current(facet: FacetView, leaf: int, version: int) -> bool:
    """Whether a leaf is still what it was when a plan was made for it."""
    return bool(facet.leaves["alive"][leaf]) and int(facet.leaves["version"][leaf]) == version
