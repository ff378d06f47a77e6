"""Which store and model belong together, and what is said when they do not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from schemas.config import Config
from schemas.errors import ArtifactError, StoreError, StoreMismatchError
from streamer.generations import (
    FIRST,
    current_generation,
    load_model,
    model_path,
    open_for_reading,
    open_index,
    remove_all,
)
from tests.builders import tiny_model


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, ``0`` and ``1``."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        tiny_model(seed).save(folder / str(seed))
    return folder


def chosen(data_dir: Path, model: Path, **sections: Any) -> Config:
    return Config.model_validate({"data_dir": data_dir, "model": {"path": model}} | sections)


def made(data_dir: Path, model: Path) -> Config:
    config = chosen(data_dir, model)
    open_index(config, load_model(config)).close()
    return config


def test_a_new_store_keeps_a_copy_of_its_model_and_needs_no_other(tmp_path: Path, artifacts: Path) -> None:
    shutil.copytree(artifacts / "0", tmp_path / "model")
    config = made(tmp_path / "data", tmp_path / "model")
    assert current_generation(config.data_dir) == FIRST
    assert (config.data_dir / "CURRENT").read_text() == f"{FIRST}\n"
    shutil.rmtree(tmp_path / "model")
    again = load_model(config)
    assert again.manifest == tiny_model().manifest
    open_index(config, again).close()
    with open_for_reading(config) as stores:
        assert stores[0].meta().model_hash == again.manifest.model_hash


def test_another_model_is_refused_with_both_hashes(tmp_path: Path, artifacts: Path) -> None:
    made(tmp_path / "data", artifacts / "0")
    config = chosen(tmp_path / "data", artifacts / "1")
    with pytest.raises(StoreMismatchError) as caught:
        load_model(config)
    mine, theirs = (tiny_model(seed).manifest.model_hash for seed in (0, 1))
    assert mine in str(caught.value)
    assert theirs in str(caught.value)
    with pytest.raises(StoreMismatchError, match="model_hash"):
        open_index(config, tiny_model(1))


def test_other_half_lives_are_refused(tmp_path: Path, artifacts: Path) -> None:
    made(tmp_path / "data", artifacts / "0")
    config = chosen(tmp_path / "data", artifacts / "0", counters={"half_lives_s": (5, 6)}, retrieval={"decay": 1})
    with pytest.raises(StoreMismatchError, match="half_lives_s"):
        open_index(config, load_model(config))


def test_without_any_model_it_is_said_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="train one with `facetstream train`, or give --model"):
        load_model(chosen(tmp_path / "data", tmp_path / "none"))


def test_an_altered_copy_of_the_model_is_refused(tmp_path: Path, artifacts: Path) -> None:
    config = made(tmp_path / "data", artifacts / "0")
    weights = model_path(config.data_dir, FIRST) / "encoder.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"encoder\.safetensors"):
        load_model(config)


def test_an_unreadable_pointer_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").mkdir()
    with pytest.raises(StoreError, match="cannot read"):
        current_generation(tmp_path)


def test_a_data_directory_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    config = chosen(tmp_path / "data", tmp_path / "none")
    with pytest.raises(StoreError):
        open_index(config, tiny_model())


def test_removing_all_makes_room_for_a_new_first_one(tmp_path: Path, artifacts: Path) -> None:
    made(tmp_path / "data", artifacts / "0")
    remove_all(tmp_path / "data")
    config = made(tmp_path / "data", artifacts / "1")
    assert load_model(config).manifest.version == "1"


def test_nothing_to_read_is_a_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match="holds no store"),
        open_for_reading(chosen(tmp_path, tmp_path / "none")),
    ):
        pass
