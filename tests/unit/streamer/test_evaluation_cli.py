"""``facetstream evaluate`` from an event log to a document."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from model_runtime.runtime import FrozenModel
from schemas.errors import ConfigError, UsageError
from streamer.cli import app
from streamer.evaluation.settings import load_settings
from streamer.evaluation.timeline import read_timeline
from streamer.eventlog_writer import EventLogWriter
from tests.evaluation_logs import random_log


@pytest.fixture
def events(tmp_path):
    log = random_log(8, events=200)
    with EventLogWriter(tmp_path / "events", 2) as out:
        for item_id, content, at in zip(log.item_ids, log.contents, log.created_at.tolist(), strict=True):
            out.write({"type": "item.created", "item_id": item_id, "occurred_at": at, "title": content.title})
        out.write({"type": "item.updated", "item_id": "i0", "occurred_at": 1_700_000, "title": "news of the future"})
        for at, (user, item, time) in enumerate(zip(log.user, log.item, log.time, strict=True)):
            event = {"type": "engagement", "event_id": f"e{at}", "user_id": f"u{user}", "item_id": f"i{item}"}
            out.write(event | {"kind": "click", "occurred_at": int(time)})
    return tmp_path / "events"


def test_a_timeline_holds_every_item_event_in_order_but_training_only_what_was_known(events):
    timeline = read_timeline(events, 1_000_000)
    assert timeline.item_at.tolist() == sorted(timeline.item_at.tolist())
    row = timeline.log.item_ids.index("i0")
    titles = [content.title for at, content in zip(timeline.item_row, timeline.contents, strict=True) if at == row]
    assert titles[-1] == "news of the future"
    assert timeline.log.contents[row].title == titles[0]
    assert read_timeline(events, 1_000_000, 1_700_000).item_at.max() < 1_700_000


def test_a_model_is_evaluated_and_the_document_written(events, tmp_path, command_line):
    FrozenModel.untrained(2, 2, 3, 8).save(tmp_path / "model")
    arguments = ["evaluate", "--events", str(events), "--model", str(tmp_path / "model"), "--share", "0.6"]
    out = tmp_path / "found" / "tiny.json"
    told = command_line.invoke(app, [*arguments, "--only-index", "--json", "--out", str(out)], catch_exceptions=False)
    assert told.exit_code == 0
    found = orjson.loads(told.stdout)
    assert found == orjson.loads(out.read_bytes())
    assert {"window", "queries", "pool", "systems", "index"} <= found.keys()
    for system in found["systems"]:
        assert {
            "name", "recall@100", "recall@500", "cold_recall@100", "fresh_recall@100", "low_exposure_share",
            "scored_per_query",
        } <= system.keys()  # fmt: skip
    table = command_line.invoke(app, [*arguments, "--only-index"], catch_exceptions=False)
    assert "MFLI + prior" in table.stdout


def test_a_span_that_ends_before_it_begins_is_refused(events, command_line):
    arguments = ["evaluate", "--events", str(events), "--from", "1000000", "--to", "999999"]
    with pytest.raises(UsageError, match="--to"):
        command_line.invoke(app, arguments, catch_exceptions=False)


def test_a_span_without_requests_is_refused_before_anything_is_trained(events, command_line):
    for arguments, named in ((["--to", "5"], "no engagements to split by"), (["--from", "9000000"], "earlier --from")):
        told = command_line.invoke(app, ["evaluate", "--events", str(events), "--only-index", *arguments])
        assert isinstance(told.exception, UsageError)
        assert named in str(told.exception)
        assert "train" not in told.stderr


def test_wrong_settings_are_named(tmp_path):
    (tmp_path / "wrong.toml").write_text("pool = 3")
    with pytest.raises(ConfigError, match="pool"):
        load_settings(tmp_path / "wrong.toml")
    (tmp_path / "training.toml").write_text("steps = 0")
    with pytest.raises(ConfigError, match=r"training\.steps"):
        load_settings(None, tmp_path / "training.toml")
    (tmp_path / "training.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match=r"training settings .*training\.toml cannot be read"):
        load_settings(None, tmp_path / "training.toml")


def test_a_section_of_the_evaluation_overrides_the_settings_of_training(tmp_path):
    (tmp_path / "evaluation.toml").write_text("[training.refresh]\nsteps = 7")
    (tmp_path / "training.toml").write_text("steps = 9\n[refresh]\nsteps = 8\nspan_s = 60")
    found = load_settings(tmp_path / "evaluation.toml", tmp_path / "training.toml").training
    assert (found.steps, found.refresh.steps, found.refresh.span_s) == (9, 7, 60)
    (tmp_path / "evaluation.toml").write_text("training = 7")
    with pytest.raises(ConfigError, match=r"training: .*7"):
        load_settings(tmp_path / "evaluation.toml", tmp_path / "training.toml")


def test_the_shipped_settings_are_read():
    for name in ("globo", "movielens"):
        examples = Path(__file__).parents[3] / "examples"
        settings = load_settings(examples / f"{name}-evaluation.toml", examples / f"{name}-training.toml")
        assert settings.name == name
        assert set(settings.training.prior.half_lives_s) <= set(settings.counters.half_lives_s)
