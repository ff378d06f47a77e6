"""Public data sets -> event logs, in true time order and without knowledge from the future."""

from __future__ import annotations

from streamer.importers.base import ImportReport, Progress
from streamer.importers.examples import examples_dir

__all__ = ["ImportReport", "Progress", "examples_dir"]
