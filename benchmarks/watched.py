"""Processes of the freshness benchmark: a producer at a steady rate, and consumers that note when they had what.

All note ``time.monotonic_ns``, one clock for all processes of a machine.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np

from benchmarks.apart import Answer
from benchmarks.load import item_id
from benchmarks.sending import Sender, prepared
from indexer.snapshots import SnapshotFollower
from schemas.config import Config
from schemas.errors import NotFoundError
from streamer.daemon import run_daemon
from streamer.opening import open_source
from streamer.shards import Step
from streamer.sources.base import Stream

_REFRESH_S: Final = 0.05


def daemon(*, config: dict[str, Any]) -> Answer:
    """The daemon itself, until SIGTERM.

    Returns:
        ``marks``: after each batch, when it was in the live view and how many item events were applied by then.
    """
    marks: list[tuple[int, int]] = []
    lock, items = threading.Lock(), 0

    def note(step: Step) -> None:
        nonlocal items
        with lock:
            items += step.items
            marks.append((time.monotonic_ns(), items))

    run_daemon(Config.model_validate(config), on_progress=note)
    return {"marks": marks}


def consumer(*, config: dict[str, Any], ready: str) -> Answer:
    """The floor: polls the same topics from their ends with the same source and does nothing with what comes.

    Args:
        config: names broker and topics.
        ready: file to make once it reads.

    Returns:
        ``marks``: after each poll, when it returned and how many item records were read by then.
    """
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    marks: list[tuple[int, int]] = []
    source = open_source(Config.model_validate(config), follow=True)
    ends = source.end_offsets()
    source.seek(ends)
    read = sum(end for partition, end in ends.items() if partition.stream is Stream.ITEMS)
    Path(ready).touch()
    while not stopped.is_set():
        for records in source.poll(4_096, 0.05):
            if records.partition.stream is Stream.ITEMS:
                read += len(records)
                marks.append((time.monotonic_ns(), read))
    source.close()
    return {"marks": marks}


def follower(*, url: str, partition: str, ready: str) -> Answer:
    """A retrieval process: follows the snapshots of shard 0, refreshing every 50 ms, until SIGTERM.

    Args:
        url: where they are published.
        partition: name of the one whose offsets count.
        ready: file to make once it answers.

    Returns:
        ``marks``: after each refresh that brought anything, when it was shown and the partition's next offset in it;
        ``refresh_ms``: how long those took; ``fulls``: full snapshots that were opened.
    """
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    following = SnapshotFollower(url)
    marks: list[tuple[int, int]] = []
    spent_ms: list[float] = []
    fulls: set[str] = set()
    while not stopped.wait(_REFRESH_S):
        began = time.monotonic_ns()
        try:
            if not following.refresh():
                continue
        except NotFoundError:
            continue
        reader = following.readers[0]
        marks.append((time.monotonic_ns(), reader.at.offsets.get(partition, 0)))
        spent_ms.append((marks[-1][0] - began) / 1e6)
        fulls.add(reader.info.full)
        Path(ready).touch()
    return {"marks": marks, "refresh_ms": spent_ms, "fulls": len(fulls)}


def producer(
    *,
    kafka: dict[str, Any],
    lines: str,
    first: int,
    rate: float,
    linger_ms: int,
    engagement_lines: str | None = None,
) -> Answer:
    """Send items, each when its time has come; with each item an engagement, if given any.

    A record waits for at most ``linger_ms`` for others to go with it, and counts as sent when it was due: what comes
    later because this process was late, or kept waiting, is latency too.

    Args:
        kafka: broker and topics.
        lines: file of item events.
        first: number of the first of them, as in its id.
        rate: items a second.
        linger_ms: how long the producer gathers records before it sends them.
        engagement_lines: file of engagements with items that are there.

    Returns:
        ``sent``: when each item was due; ``offsets``: what the broker answered; ``late_ms``: how far behind schedule
        each was sent; ``used_s``: processor time of sending.
    """
    config = Config.model_validate({"kafka": kafka}).kafka
    items = [
        prepared(item_id(first + number).encode(), line)
        for number, line in enumerate(Path(lines).read_bytes().splitlines())
    ]
    others = Path(engagement_lines).read_bytes().splitlines() if engagement_lines is not None else []
    engagements = [prepared(None, line) for line in others]
    linger_ns, done, late_ms = linger_ms * 1_000_000, 0, np.empty(len(items))
    with Sender(config.bootstrap_servers) as out:
        used_s = time.process_time()
        due = time.monotonic_ns() + 200_000_000 + (np.arange(len(items)) / rate * 1e9).astype(np.int64)
        while done < len(items):
            full_at = int(due[done]) + linger_ns
            while (wait := full_at - time.monotonic_ns()) > 0:
                time.sleep(wait / 1e9)
            now = time.monotonic_ns()
            end = int(np.searchsorted(due, now, side="right"))
            batches = {config.items_topic: items[done:end]}
            if done < len(engagements):
                batches[config.engagements_topic] = engagements[done:end]
            out.send(batches)
            late_ms[done:end] = (now - full_at) / 1e6
            done = end
        out.flush()
        used_s = time.process_time() - used_s
        offsets = out.offsets[config.items_topic]
    return {"sent": due.tolist(), "offsets": offsets, "late_ms": late_ms.tolist(), "used_s": used_s}
