"""Partitions read as one stream: in one order whatever the polls, and nothing lost, doubled or held for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letters import DeadLetter, Reason
from schemas.events import Engagement, ItemDeleted
from streamer.align import Aligner
from streamer.batching import Part, cut
from streamer.decode import Decoded
from streamer.sources.base import Partition, Stream

PARTITIONS = [Partition(stream, stream.value, number) for stream in Stream for number in range(2)]
Log = list[int | None]
"""Of one partition: the time of each event, None for a record that is a dead letter."""


def event(partition: Partition, offset: int, at: int) -> ItemDeleted | Engagement:
    name = f"{partition}@{offset}"
    if partition.stream is Stream.ITEMS:
        return ItemDeleted(type="item.deleted", item_id=name, occurred_at=at)
    return Engagement(type="engagement", item_id=name, occurred_at=at, user_id="u", kind="click")


def decoded(partition: Partition, log: Log, start: int, end: int) -> Decoded:
    events = [(offset, at) for offset in range(start, end) if (at := log[offset]) is not None]
    return Decoded(
        partition,
        [event(partition, offset, at) for offset, at in events],
        np.array([offset for offset, _ in events], np.int64),
        np.array([at for _, at in events], np.int64),
        [b""] * len(events),
        [
            DeadLetter(
                reason=Reason.INVALID,
                detail="",
                topic=partition.topic,
                partition=partition.number,
                offset=offset,
                failed_at_ms=0,
            )
            for offset in range(start, end)
            if log[offset] is None
        ],
        end,
        0.0,
    )


def expected_order(logs: dict[Partition, Log]) -> list[tuple[Partition, int]]:
    """By the latest time so far of each partition, items first, then partitions, then offsets."""
    rows = []
    for partition, log in logs.items():
        clock = 0
        for offset, at in enumerate(log):
            if at is not None:
                clock = max(clock, at)
                rows.append((clock, partition.stream is not Stream.ITEMS, partition, offset))
    return [(partition, offset) for _, _, partition, offset in sorted(rows)]


@dataclass
class Reading:
    """Reads logs through an aligner, in polls and batches of any size, and can stop and start again at any batch."""

    logs: dict[Partition, Log]
    positions: dict[Partition, int] = field(default_factory=lambda: dict.fromkeys(PARTITIONS, 0))
    seen: list[tuple[Partition, int]] = field(default_factory=list)
    letters: list[tuple[Partition, int]] = field(default_factory=list)

    def start(self) -> None:
        self.read = dict(self.positions)
        self.aligner = Aligner(PARTITIONS)

    def at_end(self) -> set[Partition]:
        return {partition for partition, log in self.logs.items() if self.read[partition] == len(log)}

    def poll(self, partition: Partition, count: int) -> None:
        start = self.read[partition]
        end = min(start + count, len(self.logs[partition]))
        if end > start:
            self.aligner.push(decoded(partition, self.logs[partition], start, end))
            self.read[partition] = end

    def take(self, size: int, crash_after: int | None) -> bool:
        """Whether all released batches were applied."""
        for number, parts in enumerate(cut(self.aligner.release(self.at_end()), size)):
            if number == crash_after:
                return False
            self.apply(parts, size)
        return True

    def apply(self, parts: list[Part], size: int) -> None:
        rows: list[tuple[int, Partition, int]] = []
        for part in parts:
            partition = part.decoded.partition
            assert len(part.order) == len(part.decoded.events)
            before = self.positions[partition]
            self.positions[partition] = part.decoded.next_offset
            offsets = part.decoded.offsets.tolist()
            letters = [letter.offset for letter in part.decoded.letters]
            assert sorted(offsets + letters) == list(range(before, part.decoded.next_offset))
            self.letters += [(partition, offset) for offset in letters]
            rows += [(place, partition, offset) for place, offset in zip(part.order.tolist(), offsets, strict=True)]
        assert sorted(place for place, _, _ in rows) == list(range(len(rows)))
        assert len(rows) <= size
        self.seen += [(partition, offset) for _, partition, offset in sorted(rows)]


LOGS = st.fixed_dictionaries(
    {
        partition: st.lists(st.one_of(st.integers(0, 12), st.integers(0, 12), st.none()), max_size=12)
        for partition in PARTITIONS
    }
)


@given(data=st.data(), logs=LOGS)
def test_records_come_in_one_order_whatever_the_polls_the_batches_and_the_restarts(
    data: st.DataObject, logs: dict[Partition, Log]
) -> None:
    reading = Reading(logs)
    reading.start()
    while reading.at_end() != set(PARTITIONS) or reading.aligner.waiting():
        behind = sorted(set(PARTITIONS) - reading.at_end())
        if behind:
            reading.poll(data.draw(st.sampled_from(behind)), data.draw(st.integers(1, 6)))
        crash_after = data.draw(st.sampled_from([None, None, None, 0, 1]))
        if not reading.take(data.draw(st.integers(1, 9)), crash_after):
            reading.start()
    assert reading.seen == expected_order(logs)
    assert sorted(reading.letters) == sorted(
        (partition, offset) for partition, log in logs.items() for offset, at in enumerate(log) if at is None
    )
    assert reading.positions == {partition: len(log) for partition, log in logs.items()}


@given(data=st.data(), logs=LOGS, latest=st.integers(0, 13))
def test_nothing_later_than_asked_for_is_released(data: st.DataObject, logs: dict[Partition, Log], latest: int) -> None:
    reading = Reading(logs)
    reading.start()
    for partition in data.draw(st.permutations(PARTITIONS)):
        reading.poll(partition, 12)
    released = reading.aligner.release(set(PARTITIONS), latest)
    early = {(aligned.decoded.partition, offset) for aligned in released for offset in aligned.decoded.offsets.tolist()}
    for partition, log in logs.items():
        times = [(offset, at) for offset, at in enumerate(log) if at is not None]
        clocks = np.maximum.accumulate([at for _, at in times]).tolist() if times else []
        for (offset, _), clock in zip(times, clocks, strict=True):
            assert ((partition, offset) in early) == (clock <= latest)


@given(logs=LOGS, held=st.sampled_from(PARTITIONS))
def test_only_the_partition_that_lags_holds_the_others_back(logs: dict[Partition, Log], held: Partition) -> None:
    """One partition gives nothing: the others wait for it, until it is ignored."""
    logs[held] = [5]
    reading = Reading(logs)
    reading.start()
    for partition in PARTITIONS:
        if partition != held:
            reading.poll(partition, 12)
    reading.take(100, None)
    assert all((logs[partition][offset] or 0) <= 0 for partition, offset in reading.seen)
    released = reading.aligner.release(PARTITIONS)
    for parts in cut(released, 100):
        reading.apply(parts, 100)
    assert not reading.aligner.waiting()
    assert [row for row in expected_order(logs) if row[0] != held] == reading.seen


def test_how_much_waits_is_counted_with_its_letters() -> None:
    aligner = Aligner(PARTITIONS)
    aligner.push(decoded(PARTITIONS[0], [5, None, 6], 0, 3))
    assert aligner.held(PARTITIONS[0]) == 3
    assert aligner.held(PARTITIONS[1]) == 0
    assert aligner.waiting()


def test_nothing_released_makes_no_batch() -> None:
    assert not list(cut([], 10))


def test_letters_alone_make_a_batch_of_their_own() -> None:
    aligner = Aligner(PARTITIONS)
    aligner.push(decoded(PARTITIONS[2], [None, None], 0, 2))
    [parts] = list(cut(aligner.release(()), 10))
    assert [part.decoded.next_offset for part in parts] == [2]


def test_prepared_rows_stand_in_reading_order() -> None:
    from model_runtime.runtime import FrozenModel
    from streamer.batching import prepare

    model = FrozenModel.untrained(facets=1, layers=1, codewords=4, dim=4, token_dim=4, hidden=(4,))
    logs: dict[Partition, Log] = {
        PARTITIONS[0]: [1, 4, 6],
        PARTITIONS[1]: [2, 3, 9],
        PARTITIONS[2]: [2, None, 5],
        PARTITIONS[3]: [1, 8],
    }
    reading = Reading(logs)
    reading.start()
    for partition in PARTITIONS:
        reading.poll(partition, 12)
    [parts] = list(cut(reading.aligner.release(set(PARTITIONS)), 100))
    prepared = prepare(parts, model)
    rows = sorted(
        [
            *zip(prepared.batch.item_order().tolist(), prepared.batch.items.item_ids, strict=True),
            *zip(prepared.batch.engagement_order().tolist(), prepared.batch.engagements.item_ids, strict=True),
        ]
    )
    assert [name for _, name in rows] == [f"{partition}@{offset}" for partition, offset in expected_order(logs)]
    assert prepared.batch.items.occurred_at.tolist() == [1, 2, 3, 4, 6, 9]
    assert prepared.batch.items.sources[:3] == ["items-0", "items-1", "items-1"]
    assert prepared.batch.engagements.occurred_at.tolist() == [1, 2, 5, 8]
    assert prepared.batch.stream_times(3).tolist() == [3, 3, 3, 3, 3, 3, 4, 5, 6, 8, 9]
    assert prepared.batch.positions == {"items-0": 3, "items-1": 3, "engagements-0": 3, "engagements-1": 2}
    assert prepared.batch.dead_letters == 1
    assert prepared.records == 11
