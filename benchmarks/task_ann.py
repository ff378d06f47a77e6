"""Retrieval beside multi-ANN on real data: task recall and queries a second, with a trained artifact.

    GLOBO=DIR python -m benchmarks.task_ann [--requests Q] [--repeats R] [--threads N] [--json]

Needs the extra ``bench``. News: DIR holds the Globo clicks (``clicks.parquet``), which are not shipped; without them
that part is skipped. The model learns from 1 to 9 October; at six moments of the 10th and 11th the index and the peers
hold what was clicked in the 60 hours before, and answer the requests of the next half hour. Films: the shipped
MovieLens ratings; the model learns from the first four fifths of the time, asked is once, at their end. A request is
up to five distinct earlier items of a user, three facets; its target is the next item that is new to the user.

Ours reads the first S of the leaves of the triggers and of their nearest neighbours, with the prior that the model
learned. The peers are faiss HNSW M16 and IVF-Flat, one index a facet: "multi-ANN 8x" takes 8 k / 15 neighbours for each
trigger and facet and reranks them with the same prior, "similarity only" takes k / 15 and has none. All give k = 100
and k = 500.

Units: requests per second of the thread's own time (by the clock with two threads), milliseconds, items scored a
request ("scored"; of the peers those that came back). Medians; each recall over all requests of all moments.
"""

from __future__ import annotations

import os
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks import task_runs
from benchmarks.ann_runs import ALONE
from benchmarks.apart import call
from benchmarks.options import Options, main, say
from benchmarks.report import Result
from schemas.training import TrainingConfig
from streamer.evaluation.timeline import split_time
from streamer.importers.globo import import_globo
from streamer.importers.movielens import import_movielens
from streamer.train import train_artifact
from streamer.training_data import read_training_log

_HOUR_MS: Final = 3_600_000
_FILMS: Final = Path(__file__).parents[1] / "examples" / "ml-latest-small"
_SETTINGS: Final = Path(__file__).parents[1] / "examples" / "globo-training.toml"
_HOURS: Final = ((10, 6), (10, 14), (10, 22), (11, 6), (11, 14), (11, 22))
_CONFIG: Final[dict[str, Any]] = {
    "retrieval": {"decay": 0},
}
OURS: Final = {
    f"{probes} probes, first {scan}": {"probes": probes, "indices": 15 * (probes + 1), "scan": scan, "vote_share": 0.0}
    for probes, scan in ((0, 5), (0, 10), (0, 20), (0, 60), (1, 10), (1, 20), (3, 10), (3, 20), (3, 60))
}
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def run(options: Options) -> Result:
    """Measure."""
    result = Result("task_ann", {"requests": int(options.extra["requests"]), "repeats": options.repeats})
    _films(options, result)
    given = os.environ.get("GLOBO")
    if given and Path(given).exists():
        _news(options, result, Path(given))
    else:
        result.skip("news", "the Globo clicks are not shipped; set GLOBO to the directory that holds them")
    return result


def _films(options: Options, result: Result) -> None:
    events, model = options.workdir / "films", options.workdir / "films-model"
    say("films: training")
    import_movielens(_FILMS, events)
    log = read_training_log(events)
    split = split_time(log, 0.8)
    train_artifact(events, model, TrainingConfig(steps=int(options.extra["steps"])), split, _quiet)
    moments = [[int(log.time[0]), split, int(log.time[-1]) + 1]]
    _measure(options, result, "films", events, model, moments)


def _news(options: Options, result: Result, clicks: Path) -> None:
    events, model = options.workdir / "news", options.workdir / "news-model"
    times = [int(datetime(2017, 10, day, hour, tzinfo=UTC).timestamp() * 1_000) for day, hour in _HOURS]
    say("news: importing and training")
    import_globo(clicks, events, to_ms=times[-1] + _HOUR_MS // 2)
    until = int(datetime(2017, 10, 10, tzinfo=UTC).timestamp() * 1_000)
    settings = tomllib.loads(_SETTINGS.read_text()) | {"steps": int(options.extra["steps"])}
    train_artifact(events, model, TrainingConfig.model_validate(settings), until, _quiet)
    moments = [[time - 60 * _HOUR_MS, time, time + _HOUR_MS // 2] for time in times]
    _measure(options, result, "news", events, model, moments)


def _quiet(_steps: int) -> None:
    """Training is long, but tells no one here."""


def _measure(options: Options, result: Result, data: str, events: Path, model: Path, moments: list[list[int]]) -> None:
    say(f"{data}: answering requests")
    arguments = {
        "events": str(events),
        "model": str(model),
        "config": _CONFIG,
        "moments": moments,
        "requests": int(options.extra["requests"]),
        "ours": OURS,
        "ivf": [1, 2, 4],
        "hnsw": [16, 32, 64],
        "threads": [1, 2] if options.extra["threads"] > 1 else [1],
        "repeats": options.repeats,
    }
    found = call(task_runs.measure, arguments, apart=options.apart, environment=_ONE_THREAD)
    result.details[data] = {"pool": found["pool"], "requests": found["requests"], "systems": found["systems"]}
    for threads, systems in found["systems"].items():
        behind = "" if threads == "1" else f", {threads} threads"
        for name, answer in systems.items():
            result.add(f"{data}: requests, {name}{behind}", "/s", *answer["per_second"])
            if not behind and not name.endswith(ALONE):
                result.add(f"{data}: recall, {name}", "", answer["recall"])
                result.add(f"{data}: scored, {name}", "", answer["scored"])
                result.add(f"{data}: latency p99, {name}", "ms", answer["p99_ms"])
        for peer, cut, goal in ((f"{task_runs.OVER}, HNSW", 100, 5.0), (task_runs.PLAIN, 500, 1.6)):
            ratio = advantage(systems, peer, cut)
            name = f"{data}: ours / {peer}, recall@{cut} no lower{behind}"
            result.ratios.append((name, ratio))
            if not behind and data == "news":
                result.goal(name, ratio, "at least", goal)


def advantage(systems: dict[str, Any], peer: str, cut: int) -> float:
    """Our fastest setting that finds no less than any setting of the peer, over the peer's fastest."""
    theirs = [one for name, one in systems.items() if name.startswith(peer) and name.endswith(f"@{cut}")]
    wanted = max(one["recall"] for one in theirs)
    ours = [
        median(one["per_second"])
        for name, one in systems.items()
        if name.startswith(task_runs.OURS) and name.endswith(f"@{cut}") and one["recall"] >= wanted
    ]
    return float(max(ours, default=0.0) / max(median(one["per_second"]) for one in theirs))


if __name__ == "__main__":
    extra = {
        "requests": (300.0, "requests at a moment"),
        "threads": (1.0, "2 to measure two threads as well"),
        "steps": (600.0, "of training"),
    }
    raise SystemExit(main(__doc__, run, size=1, extra=extra))
