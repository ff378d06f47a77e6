"""The events that enter the system, one JSON object per record.

Unknown fields are ignored, never an error. Times are RFC 3339 with an offset, or integer epoch milliseconds; models
carry them as epoch milliseconds in ``occurred_at``. Identifiers are strings of 1 to 256 bytes in UTF-8.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)

MAX_ID_BYTES: Final = 256
LATEST_MS: Final = 253_402_300_799_999  # 9999-12-31, what RFC 3339 can write


def _within_id_bytes(value: str) -> str:
    if len(value) * 4 > MAX_ID_BYTES and len(value.encode()) > MAX_ID_BYTES:
        raise ValueError(f"identifier is longer than {MAX_ID_BYTES} bytes")
    return value


def parse_time_ms(value: object) -> int:
    """Epoch milliseconds from an integer (already milliseconds) or an RFC 3339 string with an offset.

    Raises:
        ValueError: if the value is neither, or has no offset.
    """
    if type(value) is int:
        return value
    if isinstance(value, str):
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value!r} is not an RFC 3339 time") from None
        if when.tzinfo is None:
            raise ValueError(f"{value!r} has no UTC offset; write for example {value}Z")
        try:
            when = when.astimezone(UTC)
        except OverflowError:  # an hour before the year 1, or after 9999
            raise ValueError(f"{value!r} is out of range in UTC") from None
        return calendar.timegm(when.timetuple()) * 1000 + when.microsecond // 1000
    raise ValueError("a time is an RFC 3339 string or integer epoch milliseconds")


Identifier = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES), AfterValidator(_within_id_bytes)]
TimeMs = Annotated[
    int,
    BeforeValidator(parse_time_ms, json_schema_input_type=int | str),
    Field(ge=0, le=LATEST_MS),
]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Label = Annotated[str, Field(max_length=1024)]


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: Literal[1] = 1
    item_id: Identifier
    occurred_at: TimeMs


class ItemContent(BaseModel):
    """What is known of an item at its creation; the encoder sees these fields and nothing else.

    Attributes:
        embedding: an optional dense vector; its length must equal the model's ``dense_dim``.
        attributes: free key/value pairs, for example ``{"publisher": "g1"}``.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    title: str | None = None
    text: str | None = None
    categories: list[Label] = Field(default_factory=list)
    tags: list[Label] = Field(default_factory=list)
    creator_id: Label | None = None
    language: Label | None = None
    embedding: Annotated[list[FiniteFloat], Field(min_length=1)] | None = None
    attributes: dict[Label, Label] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if not (
            self.title
            or self.text
            or self.categories
            or self.tags
            or self.creator_id
            or self.language
            or self.embedding
            or self.attributes
        ):
            raise ValueError("an item needs at least one content field, for example a title")
        return self


class ItemCreated(ItemContent, _Event):
    """A new item with its content."""

    type: Literal["item.created"]


class ItemUpdated(ItemContent, _Event):
    """The full new content of an item; creates the item if it is not there."""

    type: Literal["item.updated"]


class ItemDeleted(_Event):
    """The item leaves every posting list. A tombstone (null value) on the items topic means the same."""

    type: Literal["item.deleted"]


class Engagement(_Event):
    """A user did something with an item.

    Attributes:
        kind: an open set, for example ``click``, ``like``, ``rating``.
        value: what the kind measures: a rating, seconds, an amount.
    """

    type: Literal["engagement"]
    user_id: Identifier
    kind: Identifier
    event_id: Identifier | None = None
    session_id: Identifier | None = None
    value: FiniteFloat | None = None


ItemEvent = Annotated[ItemCreated | ItemUpdated | ItemDeleted, Field(discriminator="type")]
Event = Annotated[ItemCreated | ItemUpdated | ItemDeleted | Engagement, Field(discriminator="type")]

ITEM_EVENT: Final[TypeAdapter[ItemCreated | ItemUpdated | ItemDeleted]] = TypeAdapter(ItemEvent)
ENGAGEMENT: Final[TypeAdapter[Engagement]] = TypeAdapter(Engagement)
EVENT: Final[TypeAdapter[ItemCreated | ItemUpdated | ItemDeleted | Engagement]] = TypeAdapter(Event)


def event_json_schema() -> dict[str, Any]:
    """The JSON Schema of any event."""
    return EVENT.json_schema()
