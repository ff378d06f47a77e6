"""Item ids against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.ids import Ids

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(batches=st.lists(st.lists(NAMES, max_size=40), max_size=8), asked=st.lists(NAMES, max_size=20))
def test_ids_are_found_by_ordinal_and_ordinals_by_id(batches: list[list[str]], asked: list[str]) -> None:
    ids, known = Ids(), dict[str, int]()
    for batch in batches:
        new = [name for name in dict.fromkeys(batch) if name not in known]
        known |= {name: len(known) + row for row, name in enumerate(new)}
        ids.add([name.encode() for name in new])
        assert ids.ordinals([*new, *asked]).tolist() == [known.get(name, -1) for name in [*new, *asked]]
    assert list(ids) == list(known)
    assert len(ids) == ids.distinct == len(known)
    assert ids.ordinals(list(known)).tolist() == list(range(len(known)))


def test_a_table_that_grew_many_times() -> None:
    ids, names = Ids(), [f"item-{number}" for number in range(50_000)]
    for first in range(0, 50_000, 777):
        ids.add([name.encode() for name in names[first : first + 777]])
    dice = np.random.default_rng(0)
    picked = dice.integers(0, 50_000, 1_000)
    assert ids.of(picked) == [names[at] for at in picked]
    assert ids.ordinals([names[at] for at in picked]).tolist() == picked.tolist()
    assert ids.ordinals([f"item-{number}x" for number in range(1_000)]).max() == -1
    assert ids.nbytes < 60 * 50_000


def test_an_ordinal_without_an_id_and_an_id_that_comes_twice() -> None:
    ids = Ids()
    ids.add([b"a", b"", b"a", b"b"])
    assert list(ids) == ["a", "", "a", "b"]
    assert (len(ids), ids.distinct) == (4, 2)
    assert ids.ordinals(["a", "", "b", "\ud800"]).tolist() == [0, -1, 3, -1]
