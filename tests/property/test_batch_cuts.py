"""Released records cut into batches: bounded, whole, in order, whatever lies between the events."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letters import DeadLetter, Reason
from schemas.events import ItemDeleted
from streamer.align import Aligned
from streamer.batching import Part, cut
from streamer.decode import Decoded
from streamer.sources.base import Partition, Stream

PARTITIONS = [Partition(Stream.ITEMS, "items", number) for number in range(3)]


@st.composite
def released(draw: Any) -> list[Aligned]:
    """Consecutive pieces of three partitions: events with ascending clocks, letters, holes."""
    at = dict.fromkeys(PARTITIONS, 0)
    clock = dict.fromkeys(PARTITIONS, 0)
    out = []
    for _ in range(draw(st.integers(0, 8))):
        partition = draw(st.sampled_from(PARTITIONS))
        start = offset = at[partition]
        rows: list[tuple[int, int]] = []
        letters: list[DeadLetter] = []
        for what in draw(st.lists(st.sampled_from(["event", "event", "letter", "letter", "hole"]), max_size=12)):
            if what == "event":
                clock[partition] += draw(st.sampled_from([0, 0, 1, 5]))
                rows.append((offset, clock[partition]))
            elif what == "letter":
                letters.append(
                    DeadLetter(
                        reason=Reason.INVALID,
                        detail="",
                        topic=partition.topic,
                        partition=partition.number,
                        offset=offset,
                        failed_at_ms=0,
                        value=b"x" * draw(st.sampled_from([0, 1, 10])),
                    )
                )
            offset += 1
        at[partition] = offset
        clocks = np.array([each for _, each in rows], np.int64)
        events = [
            ItemDeleted(type="item.deleted", item_id=f"{partition}@{row}", occurred_at=when) for row, when in rows
        ]
        decoded = Decoded(
            partition,
            list(events),
            np.array([row for row, _ in rows], np.int64),
            clocks,
            [b"x" * draw(st.sampled_from([0, 1, 10])) for _ in rows],
            letters,
            offset,
            0.0,
            start,
        )
        out.append(Aligned(decoded, clocks))
    return out


def value_of(letter: DeadLetter) -> bytes:
    return letter.value or b""


def records_of(part: Part) -> list[int]:
    return sorted([*part.decoded.offsets.tolist(), *(letter.offset for letter in part.decoded.letters)])


@given(released(), st.integers(1, 9), st.sampled_from([1, 12, 1_000]))
def test_batches_are_bounded_and_lose_or_swap_nothing(pieces: list[Aligned], size: int, most_bytes: int) -> None:
    clock_of = {
        (aligned.decoded.partition, offset): clock
        for aligned in pieces
        for offset, clock in zip(aligned.decoded.offsets.tolist(), aligned.clocks.tolist(), strict=True)
    }
    batches = list(cut(pieces, size, most_bytes))
    sizes = [sum(len(records_of(part)) for part in batch) for batch in batches]
    bytes_of = [
        [len(value) for part in batch for value in [*part.decoded.values, *map(value_of, part.decoded.letters)]]
        for batch in batches
    ]
    assert all(count == size or sum(told) >= most_bytes for count, told in zip(sizes[:-1], bytes_of, strict=False))
    assert all(count <= size for count in sizes)
    assert all(sum(told) < most_bytes + max(told, default=0) for told in bytes_of)
    read: dict[Partition, list[int]] = {partition: [] for partition in PARTITIONS}
    stands = dict.fromkeys(PARTITIONS, 0)
    clocks: list[int] = []
    for batch in batches:
        placed: list[tuple[int, int]] = []
        for part in batch:
            partition, offsets = part.decoded.partition, records_of(part)
            assert part.decoded.start == stands[partition]
            assert all(stands[partition] <= offset < part.decoded.next_offset for offset in offsets)
            read[partition] += offsets
            stands[partition] = part.decoded.next_offset
            for place, offset in zip(part.order.tolist(), part.decoded.offsets.tolist(), strict=True):
                placed.append((place, clock_of[partition, offset]))
        assert [place for place, _ in sorted(placed)] == list(range(len(placed)))
        clocks += [clock for _, clock in sorted(placed)]
    assert clocks == sorted(clocks)
    for partition in PARTITIONS:
        mine = [aligned.decoded for aligned in pieces if aligned.decoded.partition == partition]
        assert read[partition] == [row for each in mine for row in records_of(Part(each, np.empty(0, np.int64)))]
        assert stands[partition] == max((each.next_offset for each in mine), default=0)
