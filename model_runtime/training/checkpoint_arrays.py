"""Which arrays a checkpoint holds: a foreign or damaged one is refused before anything is computed with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from schemas.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from schemas.training import TrainingConfig

WEIGHT, FIRST, SECOND, BEST = "weight/", "first/", "second/", "best/"
_IN_PART: Final = ("encoder.table", "encoder.ids")  # of the best parameters only the rows in use are kept

Shape = tuple[int, ...]


def check(
    path: Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    config: TrainingConfig,
    weights: Mapping[str, Shape],
    *,
    watched: bool,
) -> None:
    """Refuse arrays that are not those of a state.

    Args:
        path: of the checkpoint, for the message.
        arrays: as read.
        config: as read, of the same checkpoint.
        weights: name -> shape that it implies, with as many id rows as there are ``id_keys``.
        watched: whether early stopping has looked, and keeps its best parameters.

    Raises:
        ArtifactError: names the array that is missing, too many, of another type or shape, or out of order.
    """
    ids = weights["encoder.ids"][:1]
    books = (len(config.labels), config.layers, config.codewords)
    expected: dict[str, tuple[type[np.generic], Shape]] = {
        "usage": (np.float32, books),
        "id_keys": (np.uint64, ids),
        "id_seen": (np.int64, ids),
    }
    for prefix in (WEIGHT, FIRST, SECOND, *((BEST,) if watched else ())):
        expected |= {prefix + name: (np.float32, shape) for name, shape in weights.items()}
    for name in sorted(expected.keys() ^ arrays.keys()):
        fault = "is missing" if name in expected else "belongs to no state of its settings"
        raise ArtifactError(f"checkpoint {path}: array {name} {fault}; train anew, or give an undamaged checkpoint")
    for name, (dtype, shape) in expected.items():
        values = arrays[name]
        if values.dtype != dtype or not _fits(name, values.shape, shape):
            raise ArtifactError(
                f"checkpoint {path}: array {name} is {values.dtype} {values.shape}, its settings imply "
                f"{np.dtype(dtype)} {shape}; train anew, or give an undamaged checkpoint"
            )
        if values.dtype == np.float32 and not np.isfinite(values).all():
            raise ArtifactError(f"checkpoint {path}: array {name} holds values that are no finite numbers; train anew")
    keys = arrays["id_keys"]
    if (keys[1:] <= keys[:-1]).any():
        raise ArtifactError(f"checkpoint {path}: array id_keys does not ascend; train anew")


def _fits(name: str, found: Shape, expected: Shape) -> bool:
    if name.removeprefix(BEST) in _IN_PART and name.startswith(BEST):
        return len(found) == len(expected) and found[0] <= expected[0] and found[1:] == expected[1:]
    return found == expected
