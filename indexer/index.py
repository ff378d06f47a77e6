"""Opening an index: store, live view, pending engagements and writer together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from indexer.pending import Pending, load_pending
from indexer.rebalance.apply import Outcome
from indexer.rebalance.compactor import Compactor
from indexer.store import Store, check_meta
from indexer.view import LiveView, load_view
from indexer.writer import IndexWriter
from schemas.config import Config
from schemas.store import StoreMeta


class Index:
    """One store open for writing, with everything that goes with it.

    Attributes:
        store, view, pending, writer: as their classes say.
    """

    def __init__(self, store: Store, view: LiveView, pending: Pending, config: Config) -> None:
        self.store = store
        self.view = view
        self.pending = pending
        self.writer = IndexWriter(store, view, pending, max_kinds=config.limits.max_kinds, bounds=config.pending)

    @classmethod
    def open(cls, path: Path, meta: StoreMeta, codewords: npt.NDArray[np.float32], config: Config) -> Index:
        """Open the store at ``path``, or make one when there is none.

        Args:
            path: the store's directory.
            meta: what the artifact at hand makes of a store.
            codewords: (F, L, M, d) float32.
            config: limits.

        Raises:
            StoreLockedError: if another process writes to it.
            StoreMismatchError: if it was built with another model or other half-lives.
            StoreError: if it cannot be opened or does not decode.
        """
        store = Store.open_or_create(path, meta)
        try:
            check_meta(store.meta(), meta, path)
            view = load_view(store, codewords)
            pending = load_pending(store.scan("pending"))
        except BaseException as error:
            store.close_after(error)
            raise
        return cls(store, view, pending, config)

    def compactor(self, config: Config, on_applied: Callable[[Outcome], None] = lambda _: None) -> Compactor:
        """A compactor for use on the writer's own thread."""
        return Compactor(self.view, config.rebalance, lambda change: change(self.writer), on_applied)

    def close(self) -> None:
        """Sync and release the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close_after(error)
