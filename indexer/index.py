"""Opening an index: store, live view, pending engagements and writer together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import orjson

from indexer.adds_up import check_adds_up
from indexer.failpoints import failpoint
from indexer.loading import load_view
from indexer.order import Order
from indexer.pending import Pending, load_pending
from indexer.rebalance.compactor import Compactor
from indexer.rebalance.plans import Outcome
from indexer.seen import Seen
from indexer.store import Store, check_meta
from indexer.view import LiveView
from indexer.writer import IndexWriter
from schemas.config import Config
from schemas.errors import StoreMismatchError
from schemas.store import StoreMeta


class Index:
    """One store open for writing, with everything that goes with it.

    Attributes:
        store, view, pending, writer: as their classes say.
    """

    def __init__(
        self, store: Store, view: LiveView, pending: Pending, config: Config, seen: Seen | None = None
    ) -> None:
        self.store = store
        self.view = view
        self.pending = pending
        self.writer = IndexWriter(
            store, view, pending, max_kinds=config.limits.max_kinds, bounds=config.pending, seen=seen
        )

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
            view = load_view(store, codewords, Order.of(config.retrieval))
            check_adds_up(view, store)
            pending = load_pending(store.scan("pending"))
            seen = Seen(config.dedupe, store.scan("seen")) if config.dedupe.enabled else None
        except BaseException as error:
            store.close_after(error)
            raise
        return cls(store, view, pending, config, seen)

    def compactor(self, config: Config, on_outcome: Callable[[Outcome], None] = lambda _: None) -> Compactor:
        """A compactor for use on the writer's own thread."""
        return Compactor(self.view, config.rebalance, lambda change: change(self.writer), on_outcome)

    def source(self) -> dict[str, str]:
        """What tells the source this index is filled from, as :meth:`bind_source` stored it; empty if it never did.

        Raises:
            StoreCorruptError: if it does not decode.
        """
        return self.store.source()

    def bind_source(self, identity: Mapping[str, str], starts: Mapping[str, int] | None = None) -> None:
        """Remember which source this index is filled from, and where, or refuse another: offsets mean nothing there.

        Args:
            identity: ``kind``, and stream -> name and id of its topic where the broker tells it. What only one side
                names is not compared.
            starts: partition name -> offset at which its reading begins, of those without a stored one.

        Raises:
            StoreMismatchError: naming what differs.
        """
        stored = self.check_source(identity)
        if starts or identity.items() - stored.items():
            write = self.store.batch()
            write.put("meta", b"source", orjson.dumps(stored | dict(identity)))
            for name, position in (starts or {}).items():
                write.offset(name, position)
            self.store.write(write)
            self.store.sync()
            with self.view.lock:
                self.view.positions.update(starts or {})

    def check_source(self, identity: Mapping[str, str]) -> dict[str, str]:
        """What :meth:`source` says, which must not contradict ``identity``.

        Raises:
            StoreMismatchError: naming what differs.
        """
        stored = self.source()
        for name, told in identity.items():
            was = stored.get(name, told)
            if was != told and name == "kind":
                raise StoreMismatchError(
                    f"{self.store.path} was filled from a source of kind {was}, this one is {told}: put source.kind "
                    "back, or start with an empty store in another --data-dir"
                )
            if was != told:
                raise StoreMismatchError(
                    f"{self.store.path} was filled with {name} from topic {was}, now it is {told}: it was deleted and "
                    "created anew, or another one is configured, so the stored offsets mean nothing there. Put it "
                    "back, start with an empty store in another --data-dir, or keep what is indexed and read the new "
                    "topic with --reset PARTITION=earliest for each of its partitions"
                )
        return stored

    def reset(self, positions: Mapping[str, int], reason: str, identity: Mapping[str, str] | None = None) -> None:
        """Set the next offset of partitions, back or forth; the only way back (I5). Journalled, synced, all or none.

        What is indexed stays. Call it while no pipeline runs.

        Args:
            positions: partition name -> next offset to apply.
            reason: for the journal.
            identity: of the source from now on; what it does not name stays as it was.

        Raises:
            StoreError: if the disk refuses; nothing is changed then.
        """
        view = self.view
        totals = view.totals.model_copy(deep=True)
        write = self.store.batch()
        for name, position in positions.items():
            before = view.positions.get(name, 0)
            write.note(totals, op="reset", partition=name, before=before, after=position, why=reason)
            write.offset(name, position)
            totals.reset_from[name] = max(before, totals.reset_from.get(name, 0))
        if identity is not None:
            write.put("meta", b"source", orjson.dumps(self.source() | dict(identity)))
        write.totals(totals)
        failpoint("reset.before")
        self.store.write(write)
        self.store.sync()
        failpoint("reset.after")
        with view.lock:
            view.totals = totals
            view.positions.update(positions)

    def close(self) -> None:
        """Sync and release the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close_after(error)
