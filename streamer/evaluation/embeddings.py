"""Embeddings of one line of models, which all systems of that line share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from streamer.evaluation.system import F32, Bool, News

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_runtime.runtime import FrozenModel
    from schemas.events import ItemContent
    from streamer.evaluation.past import Past

_CHUNK: Final = 2_048


class Embeddings:
    """Vectors by item row, encoded from what is known of an item when they are asked for.

    Args:
        past: contents.
        item_ids: by row; an item that training saw has something of its own.
        model: the first one.

    Attributes:
        model: in use.
    """

    def __init__(self, past: Past, item_ids: Sequence[str], model: FrozenModel) -> None:
        self._past = past
        self._item_ids = item_ids
        self.refresh(model)

    def follow(self, news: News) -> None:
        """See :class:`streamer.evaluation.system.Follower`."""
        self._known[news.arrived] = False

    def refresh(self, model: FrozenModel) -> None:
        """See :class:`streamer.evaluation.system.Follower`."""
        items = len(self._past.live)
        self.model = model
        self._known: Bool = np.zeros(items, np.bool_)
        self._vectors = np.zeros((items, model.manifest.facets, model.manifest.dim), np.float16)

    def half(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float16]:
        """(n, F, d) float16 of items that exist."""
        new = np.unique(rows[~self._known[rows]])
        for start in range(0, len(new), _CHUNK):
            part = new[start : start + _CHUNK]
            contents = [self._content(row) for row in part.tolist()]
            ids = [self._item_ids[row] for row in part.tolist()]
            self._vectors[part] = self.model.encode(contents, ids).vectors
        self._known[new] = True
        return np.asarray(self._vectors[rows])

    def of(self, rows: npt.NDArray[np.integer]) -> F32:
        """(n, F, d) float32 of items that exist."""
        return self.half(rows).astype(np.float32)

    def exists(self, rows: npt.NDArray[np.integer]) -> Bool:
        """(n,) whether each was created by now; what was not has no vector."""
        return np.array([self._past.contents[row] is not None for row in rows.tolist()], np.bool_)

    def _content(self, row: int) -> ItemContent:
        content = self._past.contents[row]
        if content is None:
            raise ValueError(f"item {row} has not been created yet")
        return content
