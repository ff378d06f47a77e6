"""Power loss: what was not synced is gone. Offsets go back with the data, and reading again completes both.

RocksDB syncs tables and their list itself, and a log as soon as it has begun the next one and a flush has ended. So of
the newest log that much is certain which the last sync wrote; behind it there may be all, a part, or anything.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from indexer.index import Index
from indexer.keys import FAMILIES
from indexer.logical_state import LogicalState, differences, logical_state
from indexer.pending import Expired
from schemas.config import Config
from streamer.dead_letters import FileDeadLetters, read_file
from tests.builders import Collected, Record, assert_sound, batch_of, config, open_index, rebalance, vector_of

EVENTS = 500
ITEMS = 80


def settings() -> Config:
    """Few engagements may wait, and not for long: many become dead letters."""
    return config(pending={"max_age_s": 400, "max_count": 10})


def stream(seed: int) -> list[Record]:
    """Items that come, change and go, engagements before and after them, some with items that never come."""
    rng = random.Random(seed)
    records = []
    offsets = {"items-0": 0, "engagements-0": 0}
    for number in range(EVENTS):
        source = rng.choice(list(offsets))
        item, at = f"i{rng.randrange(ITEMS)}", max(0, number * 1_000 + rng.randrange(-20_000, 20_000))
        if source == "engagements-0":
            name = "never" if rng.random() < 0.1 else item
            record = Record(source, offsets[source], name, at, kind=rng.choice(["click", "like"]), value=rng.random())
        else:
            vector = None if rng.random() < 0.1 else vector_of(rng.randrange(30))
            record = Record(source, offsets[source], item, at, vector)
        records.append(record)
        offsets[source] += 1
    return records


@dataclass
class Machine:
    """One home: a store and a dead-letter file, and what of them would survive.

    Attributes:
        certain: log -> bytes that the last sync wrote.
        durable: the offsets as of then.
    """

    home: Path
    certain: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.home / "store"

    @property
    def letters(self) -> Path:
        return self.home / "letters.jsonl"

    def sync(self, index: Index) -> None:
        index.store.sync()
        self.certain = {log.name: log.stat().st_size for log in self.store.glob("*.log")}
        self.durable = dict(index.view.positions)

    def run(
        self,
        records: list[Record],
        rng: random.Random,
        images: list[tuple[Path, Machine]] | None = None,
        most: int = 6,
    ) -> None:
        """Apply what is not applied yet in random batches, with everything else that goes on meanwhile.

        Args:
            records: the whole stream.
            rng: for the choices.
            images: takes the home as a power loss would leave it, now and then.
            most: how many of those.
        """
        self.home.mkdir(exist_ok=True)
        sink = FileDeadLetters(self.letters)

        def set_aside(expired: list[Expired]) -> int:
            collected = Collected()
            collected(expired)
            sink.write(collected.letters())
            return sink.position

        with open_index(self.store, settings()) as index:
            sink.restore(index.view.totals.dead_letter_position)
            left = [record for record in records if record.offset >= index.view.positions.get(record.source, 0)]
            while left:
                count = rng.randint(1, 25)
                index.writer.apply(batch_of(left[:count]), set_aside)
                left = left[count:]
                if rng.random() < 0.15:
                    rebalance(index)
                if rng.random() < 0.15:
                    index.store._family[rng.choice(FAMILIES)].flush()
                if rng.random() < 0.3:
                    self.sync(index)
                if rng.random() < 0.1:
                    rebalance(index)
                if images is not None and len(images) < most and rng.random() < 0.25:
                    image = self.home.with_name(f"{self.home.name}-{len(left)}")
                    images.append((image, self.cut_off(image, rng)))
        sink.close()

    def cut_off(self, image: Path, rng: random.Random) -> Machine:
        """Copy what survives if the power fails now."""
        image.mkdir()
        copy_at_rest(self.store, image / "store")
        shutil.copyfile(self.letters, image / "letters.jsonl")
        log = max((image / "store").glob("*.log"))
        size, certain = log.stat().st_size, self.certain.get(log.name, 0)
        fate = rng.choice(["gone", "part", "zeros", "noise", "all"])
        if fate in {"gone", "zeros", "noise"}:
            os.truncate(log, certain)
        elif fate == "part":
            os.truncate(log, rng.randint(certain, size))
        if fate == "zeros":
            os.truncate(log, size)
        elif fate == "noise":
            with log.open("ab") as file:
                file.write(rng.randbytes(size - certain))
        if not log.stat().st_size and rng.random() < 0.5:
            log.unlink()  # its name was never synced either
        return Machine(image, durable=dict(self.durable))

    def meaning(self) -> LogicalState:
        with open_index(self.store, settings()) as index:
            assert_sound(index.store, allow_unbalanced=True)
            return logical_state(index.store, read_file(self.letters))


def copy_at_rest(store: Path, into: Path) -> None:
    """Copy as of one moment: RocksDB compacts in the background, and then it is done anew."""

    def look():
        return {path.name: path.stat().st_size for path in store.iterdir() if not path.name.startswith("LOG")}

    for _ in range(1_000):
        try:
            before = look()
            shutil.copytree(store, into)
            if look() == before:
                return
        except OSError:  # a file has gone meanwhile
            pass
        shutil.rmtree(into, ignore_errors=True)
    raise AssertionError(f"{store} does not come to rest")


@pytest.mark.parametrize("seed", range(3))
def test_what_was_synced_is_there_and_reading_again_makes_up_for_the_rest(tmp_path, seed):
    records = stream(seed)
    undisturbed = Machine(tmp_path / "undisturbed")
    undisturbed.run(records, random.Random(0))
    expected = undisturbed.meaning()
    assert expected.letters
    assert expected.pending

    images: list[tuple[Path, Machine]] = []
    rng = random.Random(seed + 100)
    Machine(tmp_path / "running").run(records, rng, images)
    assert len(images) > 5
    went_back = 0
    for image, machine in images:
        reached = machine.meaning().offsets
        for name, offset in machine.durable.items():
            assert reached[name] >= offset, f"{image.name}: what was synced of {name} is gone"
        # It may fail again while it makes up for the first time.
        again: list[tuple[Path, Machine]] = []
        machine.run(records, rng, again, most=1)
        assert not differences(expected, machine.meaning())
        for _, second in again:
            second.run(records, rng)
            assert not differences(expected, second.meaning())
        went_back += reached != expected.offsets
    assert went_back
