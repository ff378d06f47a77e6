"""A directory of artifacts: which is the newest, what is half-written, what goes."""

from __future__ import annotations

from pathlib import Path

from model_runtime.published import TRAINING, expire, newest, next_place, remove_half_written
from tests.builders import tiny_model


def published(models: Path, count: int) -> list[Path]:
    found = []
    for _ in range(count):
        path = next_place(models, "news-daily")
        tiny_model().save(path)
        (path / TRAINING).touch()
        found.append(path)
    return found


def test_the_highest_number_is_the_newest(tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert newest(models) is None
    assert next_place(models, "news").name == "news-0001"
    (models / "news-0100").mkdir(parents=True)  # holds no artifact
    (models / "notes.txt").touch()
    tiny_model().save(models / "news-9999")
    tiny_model().save(models / "zebra-0002")
    assert newest(models) == models / "news-9999"
    assert next_place(models, "other").name == "other-10000"
    tiny_model().save(models / "other-10000")
    assert newest(models) == models / "other-10000"


def test_older_ones_go_and_only_the_newest_keeps_its_training(tmp_path: Path) -> None:
    first, second, third = published(tmp_path, 3)
    expire(tmp_path, 2)
    assert not first.exists()
    assert not (second / TRAINING).exists()
    assert (third / TRAINING).exists()
    assert newest(tmp_path) == third
    expire(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["news-daily-0003"]


def test_what_a_killed_publisher_left_is_no_artifact_and_goes(tmp_path: Path) -> None:
    (only,) = published(tmp_path, 1)
    tiny_model().save(tmp_path / ".news-daily-0002-x7_ab")
    tiny_model().save(tmp_path / ".news-daily-0001-removed")
    (tmp_path / ".git-1").mkdir()
    assert newest(tmp_path) == only
    assert next_place(tmp_path, "news-daily").name == "news-daily-0002"
    remove_half_written(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git-1", "news-daily-0001"]
    remove_half_written(tmp_path / "none")
