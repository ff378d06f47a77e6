"""Memory: bytes per item in RAM and on disk.

    python -m benchmarks.memory [--size N] [--repeats R] [--json]

``--size`` items and as many engagements go through the pipeline into a store, which is rebalanced until idle, then
closed. In a fresh process the index is opened as a daemon opens it. RAM is given twice: what is accounted for (the live
view's arrays with their spare room, the ids and their table) and by how much the resident set grew. Disk is the store's
directory after closing, and after RocksDB has compacted every family; "on disk: FAMILY" is the part of each.

The peer is the least that would do: in RAM the embeddings alone (F x d float16), on disk the events as they came plus
the embeddings. Ratios are multiples of that.

Units: bytes per live item.
"""

from __future__ import annotations

from benchmarks import standing, whole
from benchmarks.apart import call
from benchmarks.load import engagement_lines, item_lines, write_log
from benchmarks.model import make_model
from benchmarks.options import Options, main, say
from benchmarks.report import Result

SIZE = 1_000_000  # what is there whatever the number of items, 50 to 100 MB, weighs less then
VECTORS = 3 * 64 * 2


def run(options: Options) -> Result:
    """Measure."""
    n = options.size
    result = Result("memory", {"items": n, "engagements": n, "repeats": options.repeats})
    items = item_lines(n)
    log = write_log(options.workdir / "log", items, engagement_lines(n, n))
    make_model(options.workdir)
    content = sum(map(len, items)) / n
    for repeat in range(options.repeats):
        say(f"{repeat + 1} of {options.repeats}: filling, opening, compacting a store of {n} items")
        config = whole.settings(options.workdir, log) | {"data_dir": str(options.workdir / f"data-{repeat}")}
        call(whole.ingest, {"phases": [config]}, apart=options.apart)
        ram = call(standing.opened, {"config": config}, apart=options.apart)
        disk = call(standing.compacted, {"config": config}, apart=options.apart)
        result.add("in RAM: arrays of the live view", "B", ram["arrays"] / n)
        result.add("in RAM: ids and their table", "B", ram["ids"] / n)
        result.add("in RAM: growth of the resident set", "B", ram["resident"] / n)
        result.add("on disk after closing", "B", disk["before"] / n)
        result.add("on disk after compaction", "B", disk["after"] / n)
        for family, size in disk["families"].items():
            if size:
                result.add(f"on disk: {family}", "B", size / n)
        result.add("compaction", "s", disk["seconds"])
    result.add("peer in RAM: embeddings", "B", VECTORS)
    result.add("peer on disk: events and embeddings", "B", content + VECTORS)
    result.ratio("resident set / embeddings", "in RAM: growth of the resident set", "peer in RAM: embeddings")
    result.ratio("disk / events and embeddings", "on disk after compaction", "peer on disk: events and embeddings")
    result.goal("bytes per item in RAM", result.median("in RAM: growth of the resident set"), "at most", 900)
    result.goal("bytes per item on disk", result.median("on disk after compaction"), "at most", 1_200)
    return result


if __name__ == "__main__":
    raise SystemExit(main(__doc__, run, size=SIZE, repeats=1))
