"""A process that owns every shard."""

from __future__ import annotations

from streamer.membership import AllShards
from tests.kafka.members import Notes


def test_every_shard_is_assigned_once_and_held_throughout() -> None:
    notes = Notes()
    membership = AllShards(notes, [2, 0, 1])
    assert notes.told == []
    for _ in range(3):
        membership.turn(0.0)
        assert notes.told == [("assign", [0, 1, 2])]
        assert notes.epochs == [0]
    assert [membership.holds(shard) for shard in range(4)] == [True, True, True, False]
    membership.commit({})
    membership.close()
    membership.close()
    assert notes.told == [("assign", [0, 1, 2])]
