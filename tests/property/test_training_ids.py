"""Vectors of their own: whichever items come and go, those that stay keep theirs, and the latest seen stay."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model_runtime.training.state import TrainingState
from schemas.artifact import FacetLabel, FeatureSpec
from schemas.training import TrainingConfig

ROUNDS = st.lists(st.dictionaries(st.integers(1, 2**64 - 1), st.integers(0, 1_000), max_size=8), max_size=5)


@settings(deadline=None, max_examples=50)
@given(ROUNDS, st.integers(1, 10))
def test_rows_follow_their_keys(rounds, most):
    config = TrainingConfig(
        labels=(FacetLabel(name="n", kind="next"),), dim=2, token_dim=2, features=FeatureSpec(buckets=256), max_ids=most
    )
    state = TrainingState.fresh(config)
    learned: dict[int, float] = {}
    seen: dict[int, int] = {}
    for number, batch in enumerate(rounds, start=1):
        keys = np.array(list(batch), np.uint64)
        when = np.array(list(batch.values()), np.int64)
        rows = state.add_ids(keys, when)
        for key, at in batch.items():
            seen[key] = max(at, seen.get(key, 0))
        kept = state.id_keys.tolist()
        assert kept == sorted(set(kept))
        assert len(kept) == min(most, len(seen))
        left_out = [at for key, at in seen.items() if key not in kept]
        assert max(left_out, default=0) <= min((seen[key] for key in kept), default=0)
        seen = {key: seen[key] for key in kept}
        table = state.weights["encoder.ids"]
        for row, key in enumerate(kept):
            assert table[row].tolist() == [learned.get(key, 0.0)] * 2
        for key, row in zip(keys.tolist(), rows.tolist(), strict=True):
            assert (row >= 0) == (key in kept)
            if row >= 0:
                assert kept[row] == key
                table[row] = learned[key] = float(number)
        learned = {key: learned.get(key, 0.0) for key in kept}
