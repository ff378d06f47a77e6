"""``verify`` over all shards of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from indexer.store import Store
from indexer.verify import verify
from schemas.replies import VerifyChecked, VerifyReply
from streamer.generations import reencoder, store_meta

if TYPE_CHECKING:
    from model_runtime.runtime import FrozenModel  # loads torch, which reading commands do without


def verify_shards(
    stores: Mapping[int, Store],
    model: FrozenModel | None,
    *,
    sample: int = 1_000,
    allow_unbalanced: bool = False,
) -> VerifyReply:
    """Check the invariants of each shard; with several, each violation says of which.

    Args:
        stores: shard number -> store at rest, or a secondary between two catch-ups.
        model: what they should be built with (I6, I7); None leaves that out.
        sample: items of each shard encoded again.
        allow_unbalanced: as :func:`indexer.verify.verify`.
    """
    replies: dict[int, VerifyReply] = {}
    for shard, store in stores.items():
        meta = store.meta()
        replies[shard] = verify(
            store,
            expected=None if model is None else store_meta(model, meta.generation, meta.half_lives_s),
            reencode=None if model is None else reencoder(model),
            sample=sample,
            allow_unbalanced=allow_unbalanced,
        )
    if len(replies) == 1:
        return next(iter(replies.values()))
    counts = {
        name: sum(getattr(reply.checked, name) for reply in replies.values()) for name in VerifyChecked.model_fields
    }
    return VerifyReply(
        ok=all(reply.ok for reply in replies.values()),
        checked=VerifyChecked(**counts),
        violations=[
            violation.model_copy(update={"detail": f"shard {shard}: {violation.detail}"})
            for shard, reply in replies.items()
            for violation in reply.violations
        ],
        violations_total=sum(reply.violations_total for reply in replies.values()),
        notes=[f"shard {shard}: {note}" for shard, reply in replies.items() for note in reply.notes],
    )
