"""Freshness: from an item being sent to its being retrievable, through a real broker at a stated rate.

    python -m benchmarks.freshness [--size N] [--rate R] [--repeats R] [--json]

A producer in a process of its own sends ``--size`` new items at ``--rate`` a second, each when it is due (acks=all,
linger 5 ms), to one partition; the real daemon, in another process with all its defaults, follows the topics on an
index that already holds as many items. Two loads: items alone, and items with as many engagements. The producer puts
record batches together from prepared records, as it has to share the processor with what is measured.

An item's latency runs from the moment it was due to be sent, whether or not the producer was late, to just after the
batch with it is in the live view, where its vectors, its posting in each facet and its id are visible at once to every
query. The daemon notes the time after
each batch; as there is one partition, the offset that the broker confirmed tells the batch. All items are measured,
with the machine's one monotonic clock in both processes. That is more precise than polling over HTTP, and does not take
the daemon's time. Whether it is also true is checked from outside: meanwhile a few *twins*, items with the content of
one that is there, are sent and the daemon is asked over HTTP for what is near the original, every 5 ms at first, after
50 ms every tenth of the time waited, until the twin is among the results. Twins' latencies contain the polling and the
query itself.

Meanwhile a third process follows the daemon's snapshots with the default of a delta every second, refreshing every
50 ms: "in a snapshot" is when its reader answers with the item.

The peer is the floor under any consumer: the same source polled in a loop that does nothing with the records.

Units: milliseconds. "late" is how far behind schedule records were sent: where it is large, the machine could not keep
the stated rate. "Processor" is what each process took while items were sent, in cores.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from benchmarks import watched, whole
from benchmarks.apart import Answer, Apart, ApartError
from benchmarks.broker import broker, fresh_topics, produce
from benchmarks.daemons import ask
from benchmarks.load import engagement_lines, item_id, item_lines, write_log
from benchmarks.model import make_model
from benchmarks.options import Options, main, say
from benchmarks.processor import children, used_s
from benchmarks.report import Result
from indexer.snapshots import SnapshotFollower
from schemas.config import Config
from streamer.kafka_clients import open_producer
from streamer.sources.base import Partition, Stream

SIZE: Final = 40_000
RATE: Final = 2_000.0
LINGER_MS: Final = 5
PERCENTILES: Final = (50.0, 99.0, 99.9)
LOADS: Final = ("items", "items and engagements")
_TWIN_EVERY_S: Final = 0.5
_ASK_EVERY_S: Final = 0.005
_DEADLINE_S: Final = 120.0


def run(options: Options) -> Result:
    """Measure both loads, the daemon and the floor in turn."""
    n, rate = options.size, options.extra["rate"]
    result = Result(
        "freshness",
        {"items": n, "items_before": n, "rate": rate, "linger_ms": LINGER_MS, "repeats": options.repeats},
    )
    with broker(wanted=options.broker) as (bootstrap, why_not):
        if bootstrap is None:
            result.skip("all", why_not)
            return result
        make_model(options.workdir)
        for load in LOADS:
            for repeat in range(options.repeats):
                say(f"{load}, {repeat + 1} of {options.repeats}: {n} items at {rate:g}/s, daemon and floor")
                _measure(result, options, bootstrap, load, repeat)
    for load, systems in result.details["latencies, ms"].items():
        points = {system: (values, range(1, 101)) for system, values in systems.items()}
        result.plot(load.replace(" ", "-"), f"Freshness, {load}", ("milliseconds", "% at most that"), points, log="x")
    for load in LOADS:
        for percentile in PERCENTILES:
            result.ratio(f"ours / floor, p{percentile:g}, {load}", *(f"{load}: {s}, p{percentile:g}" for s in _SYSTEMS))
    result.goal("p50 ms", result.median("items: produce -> retrievable, p50"), "at most", 100)
    result.goal("p99 ms", result.median("items: produce -> retrievable, p99"), "at most", 250)
    result.goal("in a snapshot, p99 ms", result.median(f"items: {_SNAPSHOT}, p99"), "at most", 1_500)
    return result


_SNAPSHOT: Final = "produce -> in a snapshot, in another process"
_SYSTEMS: Final = ("produce -> retrievable", "produce -> polled (floor)")


def _measure(result: Result, options: Options, bootstrap: str, load: str, repeat: int) -> None:
    n, folder = options.size, options.workdir / f"{load.replace(' ', '-')}-{repeat}"
    folder.mkdir()
    kafka = fresh_topics(bootstrap, 1)
    produce(write_log(folder / "before", item_lines(n), []), kafka)
    url = str(folder / "snapshots")
    config = whole.settings(options.workdir, None, kafka) | {
        "data_dir": str(folder / "data"),
        "snapshots": {"enabled": True, "url": url},
    }
    partition = str(Partition(Stream.ITEMS, kafka["items_topic"], 0))
    following = {"url": url, "partition": partition, "ready": str(folder / "following")}
    send = {"kafka": kafka, "rate": options.extra["rate"], "linger_ms": LINGER_MS}
    if load != "items":
        send["engagement_lines"] = _written(folder / "engagements", engagement_lines(n, n, after=2 * n))

    with ExitStack() as started, Apart(watched.daemon, {"config": config}, {}) as daemon:
        address = _address(Path(config["data_dir"]), daemon)
        _until(lambda: ask(f"{address}/status")["items_live"] >= n, daemon)
        reader = started.enter_context(Apart(watched.follower, following, {}))
        _until(Path(following["ready"]).exists, reader)
        lines = _written(folder / "lines", item_lines(n, first=n))
        watching = {"daemon": [daemon.pid], "follower": [reader.pid], "broker": children("java")}
        before = _used_s(watching)
        with Apart(watched.producer, send | {"lines": lines, "first": n}, {}) as producer:
            twins = _twins(address, kafka, n, producer)
            sent = producer.answer()
        after = _used_s(watching)
        _until(lambda: ask(f"{address}/status")["items_live"] >= 2 * n + len(twins), daemon)
        here = SnapshotFollower(url)
        _until(lambda: here.refresh() or here.readers[0].at.offsets[partition] >= 2 * n + len(twins), daemon)
        time.sleep(1)  # the other process refreshes more often than that
        reader.stop()
        shown = reader.answer()
        daemon.stop()
        seen = daemon.answer()
    _add(result, load, _SYSTEMS[0], _latencies(sent, seen))
    _add(result, load, _SNAPSHOT, _latencies(sent, shown))
    result.add(f"{load}: refresh of a snapshot reader, p99", "ms", float(np.percentile(shown["refresh_ms"], 99)))
    sending_s = n / options.extra["rate"]
    result.add(f"{load}: processor, producer", "cores", sent["used_s"] / sending_s)
    for who in sorted(before.keys() & after.keys()):
        result.add(f"{load}: processor, {who}", "cores", (after[who] - before[who]) / sending_s)
    if twins:
        result.add(f"{load}: twin, produce -> in a query's results, p50", "ms", float(np.median(twins)))
        result.details.setdefault(f"{load}: twins, ms", []).extend(round(ms, 2) for ms in twins)
    result.add(f"{load}: producer late, p99", "ms", float(np.percentile(sent["late_ms"], 99)))

    ready = folder / "ready"
    with Apart(watched.consumer, {"config": config, "ready": str(ready)}, {}) as consumer:
        _until(ready.exists, consumer)
        lines = _written(folder / "lines", item_lines(n, first=2 * n))
        with Apart(watched.producer, send | {"lines": lines, "first": 2 * n}, {}) as producer:
            sent = producer.answer()
        consumer.stop()
        seen = consumer.answer()
    _add(result, load, _SYSTEMS[1], _latencies(sent, seen))


def _used_s(processes: Mapping[str, list[int]]) -> dict[str, float]:
    """Seconds of processor time of each, where that is to be known: a broker that was there before is not ours."""
    used = {who: [used_s(pid) for pid in pids] for who, pids in processes.items()}
    return {who: sum(each for each in of if each is not None) for who, of in used.items() if of and None not in of}


def _latencies(sent: Answer, seen: Answer) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(n,) milliseconds from each send to the first mark that counts its record."""
    at, count = np.array(seen["marks"], np.int64).T
    first = np.searchsorted(count, np.array(sent["offsets"], np.int64), side="right")
    return np.asarray((at[first] - np.array(sent["sent"], np.int64)) / 1e6)


def _add(result: Result, load: str, system: str, latencies: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    shares = result.details.setdefault("latencies, ms", {}).setdefault(load, {})
    shares[system] = [round(float(each), 2) for each in np.percentile(latencies, np.arange(1, 101))]
    for percentile in PERCENTILES:
        result.add(f"{load}: {system}, p{percentile:g}", "ms", float(np.percentile(latencies, percentile)))


def _twins(url: str, kafka: dict[str, Any], before: int, producer: Apart) -> list[float]:
    """Latencies in milliseconds of twins sent while the producer runs, as somebody who asks over HTTP sees them."""
    config = Config.model_validate({"kafka": kafka}).kafka
    originals = [orjson.loads(line) for line in item_lines(before)[:1_000]]
    out = open_producer(config)
    found: list[float] = []
    try:
        for number, content in enumerate(originals):
            started = time.monotonic()
            if not producer.running():
                break
            twin = content | {"item_id": f"twin-{number}"}
            out.send(config.items_topic, orjson.dumps(twin), twin["item_id"].encode())
            question = {"items": [item_id(number)], "k": 50}
            while twin["item_id"] not in {row["item_id"] for row in ask(f"{url}/query", question)["results"]}:
                if time.monotonic() - started > _DEADLINE_S:
                    raise ApartError(f"{twin['item_id']} was not found within {_DEADLINE_S:g} s")
                # Precise to a tenth: asking a daemon that is behind ever again would keep it behind.
                time.sleep(max(_ASK_EVERY_S, (time.monotonic() - started) / 10))
            found.append((time.monotonic() - started) * 1_000)
            time.sleep(max(0.0, started + _TWIN_EVERY_S - time.monotonic()))
    finally:
        out.close(timeout=5)
    return found


def _written(path: Path, lines: list[bytes]) -> str:
    path.write_bytes(b"\n".join(lines))
    return str(path)


def _address(data_dir: Path, daemon: Apart) -> str:
    state = data_dir / "daemon.json"
    _until(state.exists, daemon)
    return str(json.loads(state.read_text())["url"])


def _until(condition: Callable[[], bool], process: Apart) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if not process.running():
            raise ApartError("the process that was waited for has ended")
        if time.monotonic() > deadline:
            raise ApartError(f"nothing after {_DEADLINE_S:g} s")
        time.sleep(0.05)


if __name__ == "__main__":
    extra = {"rate": (RATE, "items produced a second")}
    raise SystemExit(main(__doc__, run, size=SIZE, extra=extra))
