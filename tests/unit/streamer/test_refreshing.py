"""Which generation takes over with a model, what is gone on with, what is refused and what is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_runtime.runtime import FrozenModel
from schemas.artifact import FeatureSpec
from schemas.config import Config
from schemas.errors import ArtifactError, NotFoundError, StoreMismatchError, UsageError
from streamer.cli import app
from streamer.generations import (
    FIRST,
    Pointer,
    drop_generation,
    generations,
    load_model,
    make_generation,
    model_path,
    open_index,
    point_to,
    pointer,
)
from streamer.refreshing import (
    coming,
    drop_served,
    manifest_of,
    same_model,
    switch_to,
    unfinished_generations,
    was_built_with,
)
from streamer.shards import Generation
from tests.builders import tiny_model

SECOND, THIRD = "g000002", "g000003"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models ``0`` to ``2``, and some that cannot take the place of ``0``."""
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        tiny_model(seed).save(folder / str(seed))
    tiny_model(half_lives_s=(7,)).save(folder / "uncounted")
    tiny_model(half_lives_s=(3_600,)).save(folder / "twin")
    dense = FeatureSpec(buckets=256, dense_dim=3)
    FrozenModel.untrained(2, 2, 4, 4, features=dense, token_dim=4, hidden=(4,)).save(folder / "dense")
    return folder


@pytest.fixture
def config(tmp_path: Path, models: Path) -> Config:
    found = Config.model_validate({"data_dir": tmp_path / "data", "model": {"path": models / "0"}})
    open_index(found, load_model(found)).close()
    return found


def serving(config: Config) -> Generation:
    name = pointer(config.data_dir).current
    return Generation(name, load_model(config, name))


def test_the_next_number_has_its_own_model_and_is_unfinished(config: Config, models: Path) -> None:
    found = coming(config, serving(config), models / "1")
    assert found.name == SECOND
    assert same_model(found.model.manifest, FrozenModel.load(model_path(config.data_dir, SECOND)).manifest)
    assert unfinished_generations(config.data_dir) == [SECOND]
    assert pointer(config.data_dir) == Pointer(FIRST, None)


def test_what_was_begun_with_the_same_model_is_gone_on_with(config: Config, models: Path) -> None:
    coming(config, serving(config), models / "1")
    open_index(config, tiny_model(1), 0, SECOND).close()
    assert coming(config, serving(config), models / "1").name == SECOND
    assert generations(config.data_dir) == [FIRST, SECOND]


def test_what_was_begun_with_another_model_is_dropped(config: Config, models: Path) -> None:
    coming(config, serving(config), models / "1")
    open_index(config, tiny_model(1), 0, SECOND).close()
    found = coming(config, serving(config), models / "2")
    assert generations(config.data_dir) == [FIRST, found.name]
    assert same_model(FrozenModel.load(model_path(config.data_dir, found.name)).manifest, tiny_model(2).manifest)


def test_one_that_was_killed_before_it_had_its_model_gets_it(config: Config, models: Path) -> None:
    folder = config.data_dir / "generations" / SECOND
    folder.mkdir()
    (folder / "refreshing").touch()
    assert coming(config, serving(config), models / "2").name == SECOND
    assert model_path(config.data_dir, SECOND).exists()


def test_one_that_somebody_built_by_hand_stays(config: Config, models: Path) -> None:
    make_generation(config.data_dir, SECOND, tiny_model(1))
    assert coming(config, serving(config), models / "1").name == THIRD
    assert generations(config.data_dir) == [FIRST, SECOND, THIRD]


def test_another_prior_alone_makes_another_model(config: Config, models: Path) -> None:
    assert coming(config, serving(config), models / "twin").name == SECOND


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        ("0", UsageError, f"generation {FIRST} is of this model already"),
        ("uncounted", ArtifactError, "half-life of 7 s"),
        ("dense", StoreMismatchError, "takes embeddings of 3 dimensions"),
        ("none", ArtifactError, "none"),
    ],
)
def test_what_cannot_take_over_is_refused_before_anything_is_made(
    config: Config, models: Path, model: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        coming(config, serving(config), models / model)
    assert generations(config.data_dir) == [FIRST]


def test_after_the_switch_nothing_is_unfinished(config: Config, models: Path) -> None:
    coming(config, serving(config), models / "1")
    switch_to(config.data_dir, SECOND, FIRST)
    assert pointer(config.data_dir) == Pointer(SECOND, FIRST)
    assert unfinished_generations(config.data_dir) == []


def test_one_that_was_killed_right_after_the_switch_is_finished(config: Config, models: Path) -> None:
    coming(config, serving(config), models / "1")
    point_to(config.data_dir, SECOND, FIRST)
    assert unfinished_generations(config.data_dir) == []
    assert not (config.data_dir / "generations" / SECOND / "refreshing").exists()


def test_only_what_served_and_cannot_be_gone_back_to_is_dropped(config: Config, models: Path) -> None:
    make_generation(config.data_dir, "by-hand", tiny_model(2))
    for model in ("1", "2"):
        before = serving(config)
        found = coming(config, before, models / model)
        switch_to(config.data_dir, found.name, before.name)
        assert drop_served(config.data_dir) == ([FIRST] if model == "2" else [])
    assert generations(config.data_dir) == ["by-hand", SECOND, THIRD]
    assert pointer(config.data_dir) == Pointer(THIRD, SECOND)


def test_what_is_followed_is_what_a_first_generation_begins_with(tmp_path: Path, models: Path) -> None:
    followed: dict[str, Any] = {"path": models / "0", "follow": tmp_path / "models"}
    config = Config.model_validate({"data_dir": tmp_path / "data", "model": followed})
    assert same_model(load_model(config).manifest, tiny_model(0).manifest)  # nothing is published yet
    tiny_model(1).save(tmp_path / "models" / "news-0001")
    assert same_model(load_model(config).manifest, tiny_model(1).manifest)
    open_index(config, load_model(config)).close()
    # The configured model is none that a generation was built with: it may have been dropped long ago.
    assert same_model(load_model(config).manifest, tiny_model(1).manifest)


def test_what_a_killed_drop_left_is_not_in_the_way_of_the_next(config: Config, models: Path) -> None:
    make_generation(config.data_dir, SECOND, FrozenModel.load(models / "1"))
    left = config.data_dir / "generations" / f"dropping-{SECOND}" / "model"
    left.mkdir(parents=True)
    (left / "manifest.json").touch()
    assert drop_generation(config.data_dir, SECOND) > 0
    assert [each.name for each in (config.data_dir / "generations").iterdir()] == [FIRST]


def test_a_model_that_was_gone_back_from_is_known_when_its_generation_is_dropped(config: Config, models: Path) -> None:
    bad, newer = manifest_of(models / "1"), manifest_of(models / "2")
    coming(config, serving(config), models / "1")
    assert not was_built_with(config.data_dir, bad)  # it is not finished
    switch_to(config.data_dir, SECOND, FIRST)
    switch_to(config.data_dir, FIRST, SECOND)
    assert was_built_with(config.data_dir, bad)
    drop_generation(config.data_dir, SECOND)
    assert was_built_with(config.data_dir, bad)
    assert not was_built_with(config.data_dir, newer)


def test_a_model_that_somebody_built_with_and_dropped_is_new_again(config: Config, models: Path) -> None:
    make_generation(config.data_dir, "by-hand", tiny_model(1))
    assert was_built_with(config.data_dir, manifest_of(models / "1"))
    drop_generation(config.data_dir, "by-hand")
    assert not was_built_with(config.data_dir, manifest_of(models / "1"))


def test_there_must_be_an_index_to_refresh(tmp_path: Path, models: Path, monkeypatch, command_line) -> None:
    monkeypatch.setenv("FACETSTREAM_MODEL__PATH", str(models / "0"))
    told = command_line.invoke(app, ["refresh", "--model", str(models / "1"), "--data-dir", str(tmp_path / "none")])
    assert isinstance(told.exception, NotFoundError), told.output
    assert not (tmp_path / "none").exists()


def test_a_refresh_that_fails_leaves_no_image(config: Config, models: Path, monkeypatch, command_line) -> None:
    monkeypatch.setenv("FACETSTREAM_MODEL__PATH", str(models / "0"))
    monkeypatch.setenv("FACETSTREAM_COUNTERS__HALF_LIVES_S", "[60, 7200]")
    told = command_line.invoke(app, ["refresh", "--model", str(models / "1"), "--data-dir", str(config.data_dir)])
    assert isinstance(told.exception, StoreMismatchError), told.output
    assert not list(config.data_dir.rglob("*.partial"))
    assert pointer(config.data_dir) == Pointer(FIRST, None)
