"""A source whose records are a list in memory, with everything a broker may do: silence, gaps, tombstones, markers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streamer.sources.base import Partition, Records, Stream

ITEMS = Partition(Stream.ITEMS, "items", 0)
ENGAGEMENTS = Partition(Stream.ENGAGEMENTS, "engagements", 0)


@dataclass(frozen=True, slots=True)
class Scripted:
    """One record at its offset; ``value`` None with a key is a tombstone."""

    offset: int
    value: bytes | None
    key: bytes | None = None
    timestamp: int = -1


@dataclass
class ScriptedSource:
    """Gives each partition's records in order.

    Attributes:
        records: by partition, offsets ascending, gaps allowed.
        ends: where a partition ends when that is not after its last record: behind lie markers of transactions.
        silent: partitions that are behind and give nothing.
    """

    records: dict[Partition, list[Scripted]]
    ends: dict[Partition, int] = field(default_factory=dict)
    silent: set[Partition] = field(default_factory=set)
    paused: set[Partition] = field(default_factory=set)
    pauses: list[list[Partition]] = field(default_factory=list)
    resumes: list[list[Partition]] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._at = dict.fromkeys(self.records, 0)

    def partitions(self) -> list[Partition]:
        return sorted(self.records)

    def seek(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        self._at = {partition: positions.get(partition, 0) for partition in self.records}
        return dict(self._at)

    def poll(self, max_records: int, timeout_s: float) -> list[Records]:
        out = []
        for partition, records in self.records.items():
            if partition in self.paused or partition in self.silent:
                continue
            rows = [record for record in records if record.offset >= self._at[partition]][:max_records]
            end = self.end_offsets()[partition]
            after = rows[-1].offset + 1 if rows else end
            if after > self._at[partition]:
                self._at[partition] = after
                out.append(
                    Records(
                        partition,
                        [row.offset for row in rows],
                        [row.key for row in rows],
                        [row.value for row in rows],
                        after,
                        [row.timestamp for row in rows],
                    )
                )
        if not out:
            self.closed.wait(timeout_s)
        return out

    def end_offsets(self) -> dict[Partition, int]:
        return {
            partition: self.ends.get(partition, records[-1].offset + 1 if records else 0)
            for partition, records in self.records.items()
        }

    def pause(self, partitions: Sequence[Partition]) -> None:
        self.pauses.append(list(partitions))
        self.paused |= set(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self.resumes.append(list(partitions))
        self.paused -= set(partitions)

    def identity(self) -> dict[str, str]:
        return {"kind": "scripted"}

    def close(self) -> None:
        self.closed.set()
