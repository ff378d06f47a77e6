"""An event log through the real index, stopped at any moment: a request finds nothing of its future in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streamer.align import Aligner
from streamer.batching import cut, prepare
from streamer.decode import Decoder

if TYPE_CHECKING:
    from indexer.index import Index
    from model_runtime.runtime import FrozenModel
    from schemas.config import Config
    from streamer.sources.base import Partition, Source

_REBALANCE_RECORDS: Final = 2_000


class TimedReplay:
    """Applies a source's events in event time, on the calling thread.

    Args:
        index: open for writing.
        source: read from its beginning.
        model: encodes items.
        config: limits, batch size, rebalancing.
    """

    def __init__(self, index: Index, source: Source, model: FrozenModel, config: Config) -> None:
        self._index = index
        self._source = source
        self._model = model
        self._config = config
        self._decoder = Decoder(config.limits, model.check)
        self._aligner = Aligner(source.partitions())
        self._compactor = index.compactor(config)
        self._left: dict[Partition, int] = source.end_offsets()
        self._since_rebalance = 0
        source.seek({})

    def advance(self, before_ms: int) -> None:
        """Apply every event earlier than ``before_ms``, and rebalance from time to time.

        Raises:
            StoreError: if the disk refuses.
        """
        latest = before_ms - 1
        while True:
            at_end = {partition for partition, left in self._left.items() if left <= 0}
            for parts in cut(self._aligner.release(at_end, latest), self._config.writer.batch_records):
                prepared = prepare(parts, self._model)
                self._index.writer.apply(prepared.batch)
                self._since_rebalance += prepared.records
            if self._since_rebalance >= _REBALANCE_RECORDS:
                self._since_rebalance = 0
                self._compactor.run_until_idle()
            behind = [p for p in self._left if p not in at_end and self._aligner.clocks[p] <= latest]
            if not behind:
                return
            self._source.pause([p for p in self._left if p not in behind])
            for records in self._source.poll(self._config.source.max_poll_records, 1.0):
                self._aligner.push(self._decoder.decode(records))
                self._left[records.partition] -= len(records)
            self._source.resume(list(self._left))
