"""A record that could not be applied, with why and where it came from."""

from __future__ import annotations

import base64
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer


class Reason(StrEnum):
    """Why a record was set aside. Values are stable: dashboards and tests name them."""

    UNPARSEABLE = "unparseable"  # not UTF-8 JSON
    INVALID = "invalid"  # JSON, but not an event: a field is missing, malformed or out of range
    UNKNOWN_TYPE = "unknown_type"  # "type" is none of ours, or belongs on the other topic
    OVERSIZED = "oversized"  # longer than limits.max_record_bytes
    WRONG_DIMENSION = "wrong_dimension"  # embedding length differs from the model's
    FUTURE = "future"  # occurred_at beyond now + limits.max_future_s
    KEY_MISMATCH = "key_mismatch"  # record key names another item, or a tombstone has no key
    ITEM_NEVER_CAME = "item_never_came"  # an engagement waited longer than pending.max_age_s
    PENDING_OVERFLOW = "pending_overflow"  # more than pending.max_count engagements wait for items


def _to_bytes(value: object) -> object:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


Base64 = Annotated[
    bytes,
    BeforeValidator(_to_bytes),
    PlainSerializer(lambda b: base64.b64encode(b).decode(), when_used="json"),
]


class DeadLetter(BaseModel):
    """One record set aside.

    Attributes:
        reason: a stable word.
        detail: what exactly was wrong, for a person.
        topic, partition, offset: where the record was read.
        failed_at_ms: wall-clock epoch milliseconds.
        key, value: the record's bytes as they were read; base64 in JSON.
        error: class of the error that it gave; None in letters of older releases.
    """

    model_config = ConfigDict(frozen=True)

    reason: Reason
    detail: str
    topic: str
    partition: int
    offset: int
    failed_at_ms: int
    key: Base64 | None = None
    value: Base64 | None = None
    error: str | None = None

    @property
    def source(self) -> str:
        """Where it was read, ``topic-partition@offset``."""
        return f"{self.topic}-{self.partition}@{self.offset}"
