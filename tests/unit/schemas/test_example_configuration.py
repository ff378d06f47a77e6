from __future__ import annotations

from pathlib import Path

from schemas.settings import load_settings
from streamer.cli.configuration import as_toml

EXAMPLE = Path(__file__).parents[3] / "examples" / "facetstream.toml"


def test_the_shipped_configuration_file_explains_every_key() -> None:
    rows = list(load_settings(None, {}, {}).rows())
    assert EXAMPLE.read_text() == as_toml(rows), "renew it with `facetstream config show --toml`"
    assert all(row.description for row in rows)


def test_the_shipped_configuration_file_changes_nothing() -> None:
    assert load_settings(EXAMPLE, {}, {}).config == load_settings(None, {}, {}).config
