"""A learned prior as an index carries it: what a model made of counts and age, bound to the counts of one store."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

BITS: Final = 12
"""Weights, inputs and what hidden layers give are multiples of ``2 ** -BITS``, so that all sums are exact."""
LIMIT: Final = 2.0**6
"""Of weights."""
CARRIED_LIMIT: Final = 2.0**12
"""Of what hidden layers give."""
SCALE: Final = 0.125
"""Of inputs."""
UNIT_S: Final = 60.0
"""Of ages."""


class LearnedPrior(BaseModel):
    """The prior g of :mod:`model_runtime.prior`, ready to be evaluated by an index.

    Attributes:
        windows: which of the store's half-lives hold the counts that it reads, in its order.
        widths: of its layers: one more than the windows, hidden ones, 1.
        parameters: layer by layer the weights, row by row (inputs, outputs), then, but for the last, the biases.
        temperature: what an item is worth is temperature * g, in units of similarity.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    windows: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    widths: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=2)
    parameters: tuple[Annotated[float, Field(ge=-LIMIT, le=LIMIT)], ...]
    temperature: float = Field(gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        weights = sum(a * b for a, b in zip(self.widths, self.widths[1:], strict=False))
        if self.widths[0] != len(self.windows) + 1 or self.widths[-1] != 1:
            raise ValueError(f"a prior of {len(self.windows)} windows cannot have layers of widths {self.widths}")
        if len(self.parameters) != weights + sum(self.widths[1:-1]):
            raise ValueError(f"layers of widths {self.widths} do not have {len(self.parameters)} parameters")
        return self

    def __repr__(self) -> str:
        return f"prior {hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]}"
