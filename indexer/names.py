"""Tables of names: partitions and engagement kinds are stored as positions in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

OTHER_KIND = "other"


def index_names(known: list[str], names: Sequence[str], limit: int = 65_535) -> npt.NDArray[np.uint16]:
    """(n,) position of each name in ``known``, which grows; beyond ``limit`` names fall to the last, ``other``."""
    at = {name: position for position, name in enumerate(known)}
    for name in dict.fromkeys(names):
        if name not in at:
            label = name if len(known) < limit - 1 or name == OTHER_KIND else OTHER_KIND
            position = at.setdefault(label, len(known))
            if position == len(known):
                known.append(label)
            at[name] = position
    return np.fromiter(map(at.__getitem__, names), np.uint16, len(names))
