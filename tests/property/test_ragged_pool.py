"""The pool of lists against a dict of lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from indexer import ragged
from indexer.ragged import RaggedPool, spans

ROWS = st.integers(0, 11)
VALUES = st.integers(0, 2**32 - 1)


class PoolMachine(RuleBasedStateMachine):
    """Small room from the start, so that rows move and the pool is rewritten within a few steps."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = RaggedPool()
        self.expected: dict[int, list[int]] = {}

    @initialize(lists=st.lists(st.lists(VALUES, max_size=9), max_size=5))
    def build(self, lists: list[list[int]]) -> None:
        rows = np.repeat(np.arange(len(lists)), [len(each) for each in lists])
        flat = np.array([value for each in lists for value in each], np.uint32)
        self.pool = RaggedPool.from_sorted(len(lists), rows.astype(np.int64), flat)
        self.expected = dict(enumerate(lists))

    @rule(count=st.integers(0, 12))
    def ensure(self, count: int) -> None:
        self.pool.ensure_rows(count)
        for row in range(count):
            self.expected.setdefault(row, [])

    @precondition(lambda self: self.expected)
    @rule(pairs=st.lists(st.tuples(ROWS, VALUES), max_size=40), repeat=st.sampled_from([1, 1, 30]))
    def append(self, pairs: list[tuple[int, int]], repeat: int) -> None:
        pairs = [(row % len(self.expected), value) for row, value in pairs] * repeat
        self.pool.append(np.array([row for row, _ in pairs], np.int64), np.array([v for _, v in pairs], np.uint32))
        for row, value in pairs:
            self.expected[row].append(value)

    @precondition(lambda self: self.expected)
    @rule(row=ROWS, values=st.lists(VALUES, max_size=30))
    def replace(self, row: int, values: list[int]) -> None:
        row %= len(self.expected)
        self.pool.replace(row, np.array(values, np.uint32))
        self.expected[row] = values

    @precondition(lambda self: any(self.expected.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        present = [(row, value) for row, values in self.expected.items() for value in values]
        gone = data.draw(st.lists(st.sampled_from(present), max_size=20))
        self.pool.remove(np.array([row for row, _ in gone], np.int64), np.array([v for _, v in gone], np.uint32))
        for row, value in gone:
            self.expected[row] = [each for each in self.expected[row] if each != value]

    @precondition(lambda self: self.expected)
    @rule(rows=st.lists(ROWS, max_size=8))
    def gather(self, rows: list[int]) -> None:
        rows = [row % len(self.expected) for row in rows]
        values, counts = self.pool.gather(np.array(rows, np.int64))
        assert values.tolist() == [value for row in rows for value in self.expected[row]]
        assert counts.tolist() == [len(self.expected[row]) for row in rows]
        full = [row for row in rows if self.expected[row]]
        assert self.pool.first(np.array(full, np.int64)).tolist() == [self.expected[row][0] for row in full]

    @invariant()
    def holds_the_same(self) -> None:
        for row, values in self.expected.items():
            assert self.pool.row(row).tolist() == values
            assert self.pool.lengths[row] == len(values)
        assert not self.pool.lengths[len(self.expected) :].any()


@pytest.fixture(autouse=True, scope="module")
def _tight() -> object:
    """Little slack, or nothing would ever be rewritten in a test."""
    before, ragged._SLACK = ragged._SLACK, 8
    yield
    ragged._SLACK = before


TestPool = PoolMachine.TestCase


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6))))
def test_spans_lists_every_position_of_every_span(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array(column, np.int64) for column in ([s for s, _ in pairs], [n for _, n in pairs]))
    assert spans(starts, lengths).tolist() == [at for start, n in pairs for at in range(start, start + n)]


def test_a_row_that_was_emptied_keeps_its_room_while_it_is_filled_beside_one_that_grows() -> None:
    """Rewriting the pool takes the room of empty rows; not of those that the same step fills."""
    pool = RaggedPool.from_sorted(2, np.zeros(9, np.int64), np.arange(9, dtype=np.uint32))
    pool.append(np.zeros(8, np.int64), np.arange(9, 17, dtype=np.uint32))
    pool.remove(np.zeros(17, np.int64), np.arange(17, dtype=np.uint32))
    rows = np.array([0, 1, 1] * 30)
    pool.append(rows, np.arange(90, dtype=np.uint32))
    assert pool.row(0).tolist() == np.flatnonzero(rows == 0).tolist()
    assert pool.row(1).tolist() == np.flatnonzero(rows == 1).tolist()


def test_abandoned_room_is_given_back() -> None:
    pool = RaggedPool(1_000)
    rows = np.arange(1_000)
    for value in range(64):
        pool.append(rows, np.full(1_000, value, np.uint32))
        pool.remove(rows, np.full(1_000, value, np.uint32))
    for row in range(1_000):
        pool.append(np.full(33, row), np.arange(33, dtype=np.uint32))
    assert pool.nbytes < 4 * 1_000 * 64 * 4 + 3 * 8 * 1_000 + 4 * ragged._SLACK
