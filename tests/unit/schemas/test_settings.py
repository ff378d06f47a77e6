"""Which value is in force, where it comes from, and what is said when it makes no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas.config import Config
from schemas.errors import ConfigError
from schemas.settings import Settings, load_settings


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "facetstream.toml"
    path.write_text(text)
    return path


def load(file: Path | None = None, flags: dict[str, Any] | None = None, **environment: str) -> Settings:
    return load_settings(file, flags, environment)


def refused(file: Path | None = None, flags: dict[str, Any] | None = None, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, flags, **environment)
    return str(caught.value)


def row(settings: Settings, key: str) -> tuple[Any, str]:
    [found] = [row for row in settings.rows() if row.key == key]
    return found.value, found.origin


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No facetstream.toml of the developer's own."""
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = toml(tmp_path, "[http]\nport = 1\nhost = '0.0.0.0'\n[writer]\nbatch_records = 10\n")
    found = load(file, {"http.port": 3}, FACETSTREAM_HTTP__PORT="2", FACETSTREAM_WRITER__BATCH_RECORDS="20")
    assert row(found, "http.port") == (3, "flag")
    assert row(found, "writer.batch_records") == (20, "environment")
    assert row(found, "http.host") == ("0.0.0.0", str(file))
    assert row(found, "http.live_after_s") == (30.0, "default")
    assert found.config.http.port == 3


def test_a_flag_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    found = load(toml(tmp_path, "[http]\nport = 1\n"), {"http.port": None})
    assert row(found, "http.port")[0] == 1


def test_without_any_setting_everything_is_a_default() -> None:
    found = load()
    assert found.config == Config()
    assert {setting.origin for setting in found.rows()} == {"default"}
    assert all(setting.description for setting in found.rows())


def test_the_file_in_the_working_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml(tmp_path, "data_dir = 'here'\n")
    monkeypatch.chdir(tmp_path)
    assert load().config.data_dir == Path("here")


def test_the_environment_may_hold_lists_and_secrets() -> None:
    found = load(
        FACETSTREAM_COUNTERS__HALF_LIVES_S="[60, 3600]",
        FACETSTREAM_KAFKA__SASL_PASSWORD="hunter2",
        FACETSTREAM_DATA_DIR="/x",
    )
    assert found.config.counters.half_lives_s == (60, 3_600)
    assert found.config.data_dir == Path("/x")
    assert found.config.kafka.sasl_password is not None
    assert found.config.kafka.sasl_password.get_secret_value() == "hunter2"
    assert row(found, "kafka.sasl_password") == ("********", "environment")


@pytest.mark.parametrize("kind", ["file", "environment", "flag"])
def test_an_unknown_key_is_refused_with_its_origin_and_the_nearest_known_one(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        message = refused(toml(tmp_path, "[rebalance]\nhihg = 5\n"))
        assert str(tmp_path) in message
    elif kind == "environment":
        message = refused(FACETSTREAM_REBALANCE__HIHG="5")
        assert "FACETSTREAM_REBALANCE__HIHG" in message
    else:
        message = refused(flags={"rebalance.hihg": 5})
        assert message.startswith("flag")
    assert "unknown" in message
    assert "'rebalance.high'" in message


@pytest.mark.parametrize("text", ["[typo]\n", "[kafka.deeper]\nx = 1\n", "kafka = 3\n", "[kafka]\ntopic = 'x'\n"])
def test_unknown_tables_and_sections_that_are_no_tables_are_refused(tmp_path: Path, text: str) -> None:
    assert str(tmp_path) in refused(toml(tmp_path, text))


@pytest.mark.parametrize("kind", ["file", "environment", "flag"])
def test_a_value_out_of_range_is_refused_with_its_key_and_origin(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        message = refused(toml(tmp_path, "[http]\nport = 70000\n"))
        assert message.startswith(str(tmp_path))
    elif kind == "environment":
        message = refused(FACETSTREAM_HTTP__PORT="70000")
        assert message.startswith("environment")
    else:
        message = refused(flags={"http.port": 70_000})
        assert message.startswith("flag")
    assert "http.port" in message
    assert "70000" in message


def test_a_wrong_element_of_a_list_is_refused_with_the_lists_key_and_origin() -> None:
    message = refused(FACETSTREAM_COUNTERS__HALF_LIVES_S="[60, 0]")
    assert message.startswith("environment: counters.half_lives_s: ")


@pytest.mark.parametrize("value", ["[]", "[60, 60]", "[3600, 60]", "[-1]", str(list(range(1, 19)))])
def test_half_lives_must_ascend_and_there_must_be_one(value: str) -> None:
    assert "counters.half_lives_s" in refused(FACETSTREAM_COUNTERS__HALF_LIVES_S=value)


def test_two_values_that_contradict_each_other_are_refused_with_both_keys_and_origins(tmp_path: Path) -> None:
    message = refused(toml(tmp_path, "[rebalance]\nlow = 10\n"), FACETSTREAM_REBALANCE__HIGH="15")
    assert "at least twice" in message
    assert f"rebalance.low from {tmp_path}" in message
    assert "rebalance.high from environment" in message


def test_half_of_a_pair_is_refused() -> None:
    assert "set both" in refused(flags={"rebalance.low": 10})


def test_a_decay_that_no_half_life_stands_for_is_refused() -> None:
    message = refused(flags={"retrieval.decay": 2}, FACETSTREAM_COUNTERS__HALF_LIVES_S="[60, 3600]")
    assert "retrieval.decay" in message
    assert "retrieval.decay from flag" in message


def test_a_secret_is_not_printed_when_it_is_refused(tmp_path: Path) -> None:
    message = refused(toml(tmp_path, "[kafka]\nsasl_password = ['hunter2']\n"))
    assert "kafka.sasl_password" in message
    assert "hunter2" not in message


def test_a_secret_is_not_printed_with_another_keys_refusal(tmp_path: Path) -> None:
    text = "[kafka]\nsasl_password = 'hunter2'\nrequest_timeout_s = -1\n"
    assert "hunter2" not in refused(toml(tmp_path, text))


def test_what_is_no_json_in_the_environment_names_the_variable() -> None:
    assert "COUNTERS" in refused(FACETSTREAM_COUNTERS__HALF_LIVES_S="[60").upper()


@pytest.mark.parametrize("content", [b"[http\n", b"\xff\xfe", b"port = = 3"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    assert str(path) in refused(path)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    assert str(tmp_path / "none.toml") in refused(tmp_path / "none.toml")
    assert str(tmp_path) in refused(tmp_path)  # a directory
