"""``facetstream trainer``: one artifact after the other, whatever ends it in between."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from model_runtime.published import TRAINING, newest
from model_runtime.training.state import TrainingState
from schemas.errors import ArtifactError, ConfigError, UsageError
from streamer.sources.eventlog import EventLogSource
from streamer.trainer import Schedule, TrainerProcess
from streamer.training_data import Reading
from tests.daemons import Process

SETTINGS = """
name = "small"
codewords = 4
dim = 8
token_dim = 8
hidden = [8]
steps = 6
pairs = 16
negatives = 16
head = 4
labels = [{ name = "next", kind = "next" }]
[features]
buckets = 1024
[refresh]
steps = 3
span_s = 60
"""
GIVEN = {
    "name": "small",
    "codewords": 4,
    "dim": 8,
    "token_dim": 8,
    "hidden": [8],
    "steps": 6,
    "pairs": 16,
    "negatives": 16,
    "head": 4,
    "labels": [{"name": "next", "kind": "next"}],
    "features": {"buckets": 1024},
    "refresh": {"steps": 3, "span_s": 60},
}
ONCE = Schedule(once=True)


def clicks(path: Path, begin: int, end: int) -> None:
    """One click a second, of ten users in turn on twenty items."""
    with (path / "engagements.jsonl").open("a") as file:
        for at in range(begin, end):
            event = {"type": "engagement", "item_id": f"i{(at * 7) % 20}", "user_id": f"u{at % 10}", "kind": "click"}
            file.write(json.dumps(event | {"occurred_at": at * 1_000}) + "\n")


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.mkdir()
    with (path / "items.jsonl").open("w") as file:
        for number in range(20):
            event = {"type": "item.created", "item_id": f"i{number}", "occurred_at": 0, "title": f"t{number % 4}"}
            file.write(json.dumps(event) + "\n")
    clicks(path, 1, 150)
    return path


def once(events: Path, models: Path) -> Path | None:
    process = TrainerProcess(events, models, ONCE, GIVEN)
    process.run()
    return process.published[0][0] if process.published else None


def files_of(models: Path) -> dict[str, bytes]:
    """All of the artifacts; the states beside them hold a table whose order differs from process to process."""
    files = sorted(path for path in models.rglob("*") if path.is_file() and path.name != TRAINING)
    return {str(path.relative_to(models)): path.read_bytes() for path in files}


def test_the_first_is_fitted_and_the_next_goes_on(events: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert once(events, models) == models / "small-0001"
    assert once(events, models) is None
    clicks(events, 150, 300)
    assert once(events, models) == models / "small-0002"
    state = TrainingState.load(models / "small-0002" / TRAINING)
    assert state.window is not None
    assert (state.window.to_ms, state.fitted) == (299_001, True)
    assert not (models / "small-0001" / TRAINING).exists()


def test_an_artifact_without_the_state_of_its_training_is_gone_on_from(events: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    once(events, models)
    (models / "small-0001" / TRAINING).unlink()
    clicks(events, 150, 300)
    assert once(events, models) == models / "small-0002"


def test_one_at_a_time(events: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    with_another = []

    def step(_: int) -> None:
        with pytest.raises(UsageError, match="another trainer"):
            once(events, models)
        with_another.append(True)

    TrainerProcess(events, models, ONCE, GIVEN, on_step=step).run()
    assert len(with_another) == 6


def test_one_that_follows_publishes_whenever_event_time_has_come_far_enough(events: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    process = TrainerProcess(events, models, Schedule(every_s=100), GIVEN)
    thread = threading.Thread(target=process.run)
    thread.start()
    try:
        until(lambda: newest(models) == models / "small-0001", thread)
        clicks(events, 150, 220)  # not due yet
        clicks(events, 220, 260)
        until(lambda: newest(models) == models / "small-0002", thread)
    finally:
        process.stopped.set()
        thread.join(60)
    windows = [manifest.window.to_ms for _, manifest in process.published]
    assert windows[0] == 149_001
    assert windows[1] >= 249_001


def until(condition, thread: threading.Thread) -> None:
    waited = threading.Event()
    for _ in range(1_200):
        if condition():
            return
        assert thread.is_alive()
        waited.wait(0.05)
    raise AssertionError("waited 60 s")


def trainer(tmp_path: Path, events: Path, models: Path, *more: str, **environment: str) -> Process:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    arguments = ("trainer", "--events", events, "--models", models, "--settings", tmp_path / "settings.toml", *more)
    return Process(tmp_path / "trainer.log", *arguments, **environment)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["artifact.written", "artifact.published"])
def test_one_that_is_killed_while_it_publishes_leaves_whole_artifacts(events: Path, tmp_path: Path, point: str) -> None:
    models, calm = tmp_path / "models", tmp_path / "calm"
    for each in (models, calm):
        once(events, each)
    clicks(events, 150, 300)
    once(events, calm)
    killed = trainer(tmp_path, events, models, "--once", FACETSTREAM_FAILPOINTS=f"{point}=kill")
    killed.end(-signal.SIGKILL)
    expected = "small-0001" if point == "artifact.written" else "small-0002"
    assert newest(models) == models / expected
    trainer(tmp_path, events, models, "--once").end(0 if point == "artifact.written" else 2)
    assert newest(models) == models / "small-0002"
    assert files_of(models) == files_of(calm)
    assert not [path for path in models.iterdir() if path.name.startswith(".small")]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"name": "news/v1"}, ConfigError, "name is 'news/v1'"),
        ({"name": ".news"}, ConfigError, "name is '.news'"),
        ({"name": ""}, ConfigError, "name is ''"),
        ({"codewords": 1}, ValidationError, "codewords"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_due(
    events: Path, tmp_path: Path, change: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        TrainerProcess(events, tmp_path / "models", Schedule(every_s=1e9), GIVEN | change).run()


def test_a_device_that_is_not_there_is_told_before_anything_is_due(events: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="abacus"):
        TrainerProcess(events, tmp_path / "models", Schedule(every_s=1e9), GIVEN, device="abacus").run()


def test_reading_a_long_log_ends_when_it_is_to_and_can_go_on(events: Path) -> None:
    clicks(events, 150, 20_000)
    reading, source = Reading(), EventLogSource(events)
    looks = iter([False, True])
    taken = reading.read_on(source, stopped=lambda: next(looks))
    assert 0 < taken < 20_000
    assert taken + reading.read_on(source) == 20 + 19_999
    source.close()


@pytest.mark.slow
def test_sigterm_ends_it_in_good_order(events: Path, tmp_path: Path) -> None:
    process = trainer(tmp_path, events, tmp_path / "models", "--every", "50", "--json")
    process.until_logged("artifact_published")
    process.terminate()
    told = json.loads(process.printed())["published"]
    assert [Path(row["artifact"]).name for row in told] == ["small-0001"]


@pytest.mark.slow
def test_wrong_settings_and_a_log_with_nothing_to_learn_from_are_told(events: Path, tmp_path: Path) -> None:
    said = trainer(tmp_path, events, tmp_path / "models", "--once", "--steps", "0").end(2)
    assert "--steps" in said
    (tmp_path / "wrong.toml").write_text("codewords = 1\n")
    arguments = ("trainer", "--once", "--events", events, "--models", tmp_path / "models")
    assert "training settings: codewords" in Process(
        tmp_path / "wrong.log", *arguments, "--settings", tmp_path / "wrong.toml"
    ).end(2)
    (events / "engagements.jsonl").write_text("")
    said = Process(tmp_path / "empty.log", *arguments).end(2)
    assert "no items with engagements to learn from" in said
