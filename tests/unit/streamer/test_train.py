"""``facetstream train``: a first artifact, the next one, checkpoints, curves."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from model_runtime.runtime import FrozenModel
from model_runtime.training.state import TrainingState
from schemas.errors import ArtifactError, ConfigError, UsageError
from schemas.training import RefreshConfig, TrainingConfig
from streamer.cli import app
from streamer.train import refresh_artifact, starting_state, train_artifact

CONFIG = TrainingConfig.model_validate(
    {
        "labels": [{"name": "next", "kind": "next"}],
        "codewords": 4,
        "dim": 8,
        "token_dim": 8,
        "hidden": [8],
        "features": {"buckets": 1024},
        "steps": 6,
        "pairs": 16,
        "negatives": 16,
        "head": 4,
        "checkpoint_every": 2,
        "refresh": {"steps": 3},
    }
)
UNTIL = 150_000


@pytest.fixture
def events(tmp_path):
    """Twenty items; ten users who click one after the other, one click a second."""
    path = tmp_path / "log"
    path.mkdir()
    items = [
        {"type": "item.created", "item_id": f"i{number}", "occurred_at": 0, "title": f"t{number % 4}"}
        for number in range(20)
    ]
    clicks = [
        {
            "type": "engagement",
            "item_id": f"i{(at * 7) % 20}",
            "user_id": f"u{at % 10}",
            "kind": "click",
            "occurred_at": at * 1_000,
        }
        for at in range(1, 300)
    ]
    for name, written in (("items", items), ("engagements", clicks)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in written))
    return path


def ignore(_):
    pass


def test_the_next_artifact_has_learned_what_came_after(events, tmp_path):
    seen: list[int] = []
    first = train_artifact(events, tmp_path / "m", CONFIG, UNTIL, seen.append)
    assert sum(seen) == 6
    second = refresh_artifact(events, tmp_path / "m", tmp_path / "n", {"refresh": {"steps": 2}}, None, seen.append)
    assert sum(seen) == 8
    assert second.version > first.version
    assert (second.window.engagements, second.labels) == (299, first.labels)
    assert FrozenModel.load(tmp_path / "n").prior is not None
    assert FrozenModel.load(tmp_path / "m").manifest == first


def test_a_moment_far_ahead_is_cut_to_the_end_of_the_log(events, tmp_path):
    """Else the window would end there, and events that come later never be learned from."""
    first = train_artifact(events, tmp_path / "m", CONFIG, UNTIL, ignore)
    seen: list[int] = []
    given: dict[str, object] = {"refresh": {"steps": 3}}
    ahead = refresh_artifact(events, tmp_path / "m", tmp_path / "n", given, 1_893_456_000_000, seen.append)
    plain = refresh_artifact(events, tmp_path / "m", tmp_path / "o", given, None, ignore)
    assert (ahead, sum(seen)) == (plain, 3)
    assert first.window.to_ms < ahead.window.to_ms == 299_001


def test_a_model_may_take_its_own_place(events, tmp_path):
    train_artifact(events, tmp_path / "m", CONFIG, UNTIL, ignore)
    refreshed = refresh_artifact(events, tmp_path / "m", tmp_path / "m", {}, None, ignore)
    assert FrozenModel.load(tmp_path / "m").manifest == refreshed


def test_a_checkpoint_goes_on_with_its_own_settings(events, tmp_path):
    train_artifact(events, tmp_path / "m", CONFIG, UNTIL, ignore, checkpoint=tmp_path / "c")
    state = starting_state(tmp_path / "c", {})
    assert (state.config, state.fitted, state.updates["encoder.table"]) == (CONFIG, True, 6)
    refresh_artifact(events, tmp_path / "c", tmp_path / "n", {}, None, ignore, checkpoint=tmp_path / "c")
    assert TrainingState.load(tmp_path / "c").updates["encoder.table"] == 9


def test_an_interrupted_training_is_taken_up_and_a_finished_or_other_one_is_not(events, tmp_path):
    whole = train_artifact(events, tmp_path / "m", CONFIG, UNTIL, ignore)

    class Interrupted(Exception):  # noqa: N818
        pass

    def interrupt(steps):
        if steps and (seen := [*seen_so_far, steps]) and len(seen) > 5:
            raise Interrupted
        seen_so_far.append(steps)

    seen_so_far: list[int] = []
    with pytest.raises(Interrupted):
        train_artifact(events, tmp_path / "n", CONFIG, UNTIL, interrupt, checkpoint=tmp_path / "c")
    assert 0 < TrainingState.load(tmp_path / "c").step < 6
    again = train_artifact(events, tmp_path / "n", CONFIG, UNTIL, ignore, checkpoint=tmp_path / "c")
    assert again.files == whole.files
    with pytest.raises(UsageError, match="finished"):
        train_artifact(events, tmp_path / "n", CONFIG, UNTIL, ignore, checkpoint=tmp_path / "c")
    other = CONFIG.model_copy(update={"seed": 9})
    with pytest.raises(UsageError, match="other settings"):
        train_artifact(events, tmp_path / "n", other, UNTIL, ignore, checkpoint=tmp_path / "c")


def test_losses_are_written_as_json_lines(events, tmp_path):
    train_artifact(events, tmp_path / "m", CONFIG, UNTIL, ignore, curves=tmp_path / "curves")
    refresh_artifact(
        events, tmp_path / "m", tmp_path / "n", {"refresh": {"steps": 2}}, None, ignore, curves=tmp_path / "curves"
    )
    lines = [json.loads(line) for line in (tmp_path / "curves").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 1, 2]
    assert {"loss", "mf", "qmf"} <= lines[0].keys()
    with pytest.raises(UsageError, match="curves"):
        train_artifact(events, tmp_path / "m", CONFIG, UNTIL, ignore, curves=tmp_path)


def test_going_on_needs_newer_events(events, tmp_path):
    train_artifact(events, tmp_path / "m", CONFIG, None, ignore)
    with pytest.raises(UsageError, match="nothing newer"):
        refresh_artifact(events, tmp_path / "m", tmp_path / "n", {}, None, ignore)


def test_the_shipped_settings_are_settings():
    examples = Path(__file__).parents[3] / "examples"
    news, films = (
        TrainingConfig.model_validate(tomllib.loads((examples / f"{name}-training.toml").read_text()))
        for name in ("globo", "movielens")
    )
    assert [label.kind for label in news.labels] == ["next", "session", "later"]
    assert max(films.prior.half_lives_s) > max(news.prior.half_lives_s)


def test_the_command_trains_and_goes_on(events, tmp_path, command_line):
    (tmp_path / "settings.toml").write_text("dim = 8\ncodewords = 4\n[[labels]]\nname = 'next'\nkind = 'next'\n")
    common = ["train", "--events", str(events), "--settings", str(tmp_path / "settings.toml"), "--json"]
    first = command_line.invoke(app, [*common, "--out", str(tmp_path / "m"), "--steps", "2", "--until", str(UNTIL)])
    assert first.exit_code == 0, first.output
    second = command_line.invoke(
        app, [*common, "--out", str(tmp_path / "n"), "--steps", "1", "--continue", str(tmp_path / "m")]
    )
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout)["version"] > json.loads(first.stdout)["version"]
    other_shape = ["--codewords", "8", "--continue", str(tmp_path / "m")]
    wrong = command_line.invoke(app, [*common, "--out", str(tmp_path / "n"), *other_shape])
    assert isinstance(wrong.exception, ArtifactError)


def test_going_on_keeps_the_settings_that_are_not_given(events, tmp_path, command_line):
    config = CONFIG.model_copy(update={"refresh": RefreshConfig(steps=3, span_s=1_234)})
    train_artifact(events, tmp_path / "m", config, UNTIL, ignore, checkpoint=tmp_path / "c")
    goes_on = ["train", "--events", str(events), "--continue", str(tmp_path / "c"), "--out", str(tmp_path / "n")]
    told = command_line.invoke(app, [*goes_on, "--steps", "2", "--checkpoint", str(tmp_path / "d")])
    assert told.exit_code == 0, told.output
    assert TrainingState.load(tmp_path / "d").config.refresh == RefreshConfig(steps=2, span_s=1_234)


def test_settings_that_make_no_sense_are_refused_by_name(events, tmp_path, command_line):
    train_artifact(events, tmp_path / "m", CONFIG, UNTIL, ignore)
    settings = tmp_path / "settings.toml"
    command = ["train", "--events", str(events), "--out", str(tmp_path / "n"), "--settings", str(settings)]
    goes_on = [*command, "--continue", str(tmp_path / "m")]
    for content, arguments, named in (
        (b"refresh = 3", [*goes_on, "--steps", "2"], r"refresh .*3.*section"),
        (b"refresh = 3", goes_on, r"refresh: .*3"),
        (b"name = '\xff'", command, r"training settings .*settings\.toml cannot be read"),
        (b"name =", command, r"training settings .*settings\.toml cannot be read"),
    ):
        settings.write_bytes(content)
        with pytest.raises(ConfigError, match=named):
            command_line.invoke(app, arguments, catch_exceptions=False)
    settings.unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        command_line.invoke(app, command, catch_exceptions=False)
