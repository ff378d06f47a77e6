"""What retrieval is asked over HTTP and on the command line."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.errors import UsageError
from schemas.events import ItemContent

MOST_TRIGGERS: Final = 1_000
"""Of each kind in one question: requests share the index with the writer."""
MOST_NAMES: Final = 20_000
_Name = Annotated[str, Field(min_length=1)]
Triggers = Annotated[list[_Name], Field(max_length=MOST_TRIGGERS)]
Names = Annotated[list[_Name], Field(max_length=MOST_NAMES)]


class Question(BaseModel):
    """One request for candidates.

    Attributes:
        items: triggers by id; those that are not in the index are reported and left out.
        contents: triggers that need not be in the index, as in ``item.created``; the model encodes them.
        k, indices, selection, hot_share: instead of those configured.
        seed: of multinomial selection.
        exclude: items that the answer may not hold, such as those seen; triggers never are in it.
        max_age_s: items created earlier than this before now are left out.
        categories: results have one of these; not_categories: and none of these; languages: and one of these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: Triggers = []
    contents: Annotated[list[ItemContent], Field(max_length=MOST_TRIGGERS)] = []
    k: int | None = None
    indices: int | None = None
    selection: Literal["top", "multinomial"] | None = None
    hot_share: float | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    exclude: Names = []
    max_age_s: Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)] | None = None
    categories: Names = []
    not_categories: Names = []
    languages: Names = []

    @model_validator(mode="after")
    def _has_a_trigger(self) -> Self:
        if not self.items and not self.contents:
            raise ValueError(
                'give at least one trigger: an item in the index (--item ID; over HTTP {"items": ["ID"]}), or the '
                'content of one (--content JSON; {"contents": [{"title": ...}]})'
            )
        return self


def wrong(error: ValidationError) -> UsageError:
    """The first of the problems, in one sentence."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    told = f"{where}: {problem['msg']} (given: {problem['input']!r})" if where else problem["msg"]
    return UsageError(told.replace("Value error, ", ""))
