"""The page of figures is written from what benchmarks found."""

from __future__ import annotations

import pytest

from benchmarks import document
from benchmarks.report import Result


def test_a_result_becomes_tables_and_plots(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(document, "KEPT", tmp_path)
    result = Result("speed", {"items": 3})
    result.add("ours", "items/s", 1_234.0, 1_300.0)
    result.add("theirs", "items/s", 617.0)
    result.ratio("ours / theirs", "ours", "theirs")
    result.goal("items/s", 1_267, "at least", 2_000)
    result.skip("GPU", "none here\nmore")
    result.distribution("sizes", "Sizes", "members", {"before": [1.0, 5.0, 9.0], "after": [4.0, 5.0]}, log="x")
    text = document.figures("speed", result.document())
    assert "| ours | 1,267 | items/s | 1,234, 1,300 |" in text
    assert "| ours / theirs | 2.05 |" in text
    assert "| items/s | 1,267 | at least 2000 | **missed** |" in text
    assert "Not measured: GPU (none here)." in text
    assert "![Sizes](benchmarks/speed-sizes.svg)" in text
    first = (tmp_path / "speed-sizes.svg").read_bytes()
    document.figures("speed", result.document())
    assert (tmp_path / "speed-sizes.svg").read_bytes() == first
