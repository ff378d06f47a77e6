"""Which part of which log a fit learns from, in a few numbers: it is taken up on the very same or not at all."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from schemas.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from model_runtime.training.data import TrainingLog


class LearnedSpan(BaseModel):
    """A log up to a moment.

    Attributes:
        until_ms: the moment, epoch milliseconds; None: the end of the log.
        items, engagements: how many there are before it.
        from_ms, to_ms: first and last engagement, epoch milliseconds.
        items_hash: of identifiers, creation times and contents.
        engagements_hash: of all columns.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    until_ms: int | None
    items: int
    engagements: int
    from_ms: int
    to_ms: int
    items_hash: str
    engagements_hash: str

    @classmethod
    def of(cls, log: TrainingLog, until_ms: int | None) -> LearnedSpan:
        """Of a log that was cut at ``until_ms`` and holds an engagement."""
        items = hashlib.sha256(log.created_at.tobytes())
        for item_id, content in zip(log.item_ids, log.contents, strict=True):
            items.update(f"{item_id}\0{content.model_dump_json()}\0".encode())
        engagements = hashlib.sha256("\0".join(log.kinds).encode())
        for column in (log.user, log.item, log.time, log.kind, log.value, log.session):
            engagements.update(column.tobytes())
        return cls(
            until_ms=until_ms,
            items=len(log.item_ids),
            engagements=len(log.user),
            from_ms=int(log.time[0]),
            to_ms=int(log.time[-1]),
            items_hash=items.hexdigest(),
            engagements_hash=engagements.hexdigest(),
        )

    def differences(self, other: LearnedSpan) -> list[str]:
        """What differs, each with both values; none where the same events are learned from.

        Another moment is no difference if the same events lie before it.
        """
        mine, theirs = self.model_dump(), other.model_dump()
        changed = [name for name in mine if mine[name] != theirs[name]]
        if changed in ([], ["until_ms"]):
            return []
        return [f"{name} {_short(mine[name])}, now {_short(theirs[name])}" for name in changed]


def goes_on_with(now: LearnedSpan, before: LearnedSpan | None, checkpoint: Path | None) -> None:
    """Refuse to take up a fit on other events than it began with: the outcome would be neither's.

    Args:
        now: the events given.
        before: those that the fit began with, as its state tells.
        checkpoint: where the state is from, for the message.

    Raises:
        UsageError: names what differs, or that the state does not tell.
    """
    name = "the checkpoint" if checkpoint is None else f"checkpoint {checkpoint}"
    if before is None:
        raise UsageError(f"{name} does not tell which events its training learns from; remove it and train anew")
    if differences := before.differences(now):
        raise UsageError(
            f"{name} is of a training on other events ({'; '.join(differences)}); give the event log and --until that "
            "it began with, or another --checkpoint"
        )


def _short(value: object) -> object:
    return value[:12] if isinstance(value, str) else value
