"""What is published is synced before, unless its store was closed meanwhile."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from schemas.config import Config
from schemas.errors import StoreError
from streamer.metrics import Metrics
from streamer.publishing import _settle
from streamer.shards import Duties, Generation, Shard
from tests.builders import open_index, tiny_model


def test_nothing_is_published_of_a_store_that_was_closed(tmp_path: Path) -> None:
    """To sync what another thread is closing would end that thread, and its daemon."""
    shard = Shard(0, Generation("g000001", tiny_model()), Config(), Duties(), Metrics())
    with closing(open_index(tmp_path / "one")) as index, closing(open_index(tmp_path / "two")) as other:
        with pytest.raises(StoreError, match="shard 0 is not open now"):
            _settle(shard, index)
        shard.index = other
        with pytest.raises(StoreError, match="shard 0 was closed and opened again"):
            _settle(shard, index)
        shard.index = index
        _settle(shard, index)
