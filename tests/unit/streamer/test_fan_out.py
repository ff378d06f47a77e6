"""One request over several shards comes to what one index of all their items would say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from indexer.index import Index
from indexer.retrieval.readers import ViewReader
from indexer.retrieval.retrieve import fan_out
from indexer.retrieval.store_reader import StoreReader
from schemas.config import RetrievalConfig
from tests.builders import batch_of, open_index, rebalance, upserts

NOW_MS = 10_000
# Every trigger votes for every leaf, every leaf is read to its end: what is found is the best there is.
ALL = RetrievalConfig(k=1_000, indices=10_000, probes=10_000, scan=10_000, engagement_weight=0)


@pytest.fixture
def indices(tmp_path: Path) -> Iterator[dict[int, Index]]:
    """-1: 120 items in one index; 0 to 2: the same items, shared out; 3: none."""
    with ExitStack() as stack:
        found = {number: stack.enter_context(open_index(tmp_path / str(number))) for number in (-1, 0, 1, 2, 3)}
        for number, index in found.items():
            every = upserts(range(120))
            mine = {-1: every, 3: []}.get(number, every[number::3])
            if mine:
                index.writer.apply(batch_of(mine))
            rebalance(index)
        yield found


def views(indices: dict[int, Index], *numbers: int) -> dict[int, ViewReader]:
    return {number: ViewReader(indices[number].view) for number in numbers}


def test_shards_together_say_what_one_index_would(indices: dict[int, Index]) -> None:
    triggers = ["i0", "i1", "i5", "nobody"]  # of shards 0, 1 and 2
    together = fan_out(views(indices, 0, 1, 2, 3), triggers, ALL, NOW_MS)
    alone = fan_out(views(indices, -1), triggers, ALL, NOW_MS)
    assert len(together.item_ids) == 117
    assert dict(zip(together.item_ids, together.scores, strict=True)) == pytest.approx(
        dict(zip(alone.item_ids, alone.scores, strict=True)), abs=1e-6
    )
    assert together.missing == alone.missing == ["nobody"]
    assert set(together.item_ids).isdisjoint(triggers)
    assert together.shards.tolist() == [int(name[1:]) % 3 for name in together.item_ids]
    assert np.all(np.diff(together.scores) <= 0)


def test_the_best_of_all_shards_are_given(indices: dict[int, Index]) -> None:
    few = fan_out(views(indices, 0, 1, 2), ["i7"], ALL.model_copy(update={"k": 10}), NOW_MS)
    every = fan_out(views(indices, 0, 1, 2), ["i7"], ALL, NOW_MS)
    assert len(few.item_ids) == 10
    assert few.scores[0] == every.scores[0]
    assert set(few.item_ids) <= set(every.item_ids)


def test_store_and_live_view_answer_alike(indices: dict[int, Index]) -> None:
    config = RetrievalConfig(k=15, indices=4, probes=1)
    live = fan_out(views(indices, 0, 1, 2), ["i3", "i8"], config, NOW_MS)
    stores = {number: StoreReader(indices[number].store) for number in (0, 1, 2)}
    at_rest = fan_out(stores, ["i3", "i8"], config, NOW_MS)
    assert live.item_ids == at_rest.item_ids
    assert live.scores.tolist() == at_rest.scores.tolist()
    assert live.shards.tolist() == at_rest.shards.tolist()


def test_shards_without_anything_answer_with_nothing(indices: dict[int, Index]) -> None:
    for numbers in ((3,), (0, 3)):
        found = fan_out(views(indices, *numbers), ["nobody"], ALL, NOW_MS)
        assert found.item_ids == []
        assert found.missing == ["nobody"]
