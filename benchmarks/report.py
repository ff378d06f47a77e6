"""What a benchmark found: measures, ratios between them, goals; as JSON or as a table."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
from rich.console import Console
from rich.table import Table

SystemT = TypeVar("SystemT")

Numbers = Sequence[float] | npt.NDArray[Any]
Points = tuple[Numbers, Numbers]


@dataclass(slots=True)
class Measure:
    """One quantity of one system over the repeats."""

    name: str
    unit: str
    runs: list[float]

    @property
    def median(self) -> float:
        """Of the repeats."""
        return statistics.median(self.runs)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "unit": self.unit, "median": _short(self.median), "runs": [*map(_short, self.runs)]}


@dataclass(slots=True)
class Result:
    """Everything one run of one benchmark found.

    Attributes:
        settings: sizes and rates of the load.
        ratios: (name, value), each between two medians of this run.
        goals: (name, value, "at least" or "at most", bound).
        skipped: (name, reason) of what could not be measured here.
        details: whatever else is worth keeping, by name.
        plots: what ``benchmarks.document`` draws.
    """

    name: str
    settings: dict[str, Any]
    measures: dict[str, Measure] = field(default_factory=dict)
    ratios: list[tuple[str, float]] = field(default_factory=list)
    goals: list[tuple[str, float, Literal["at least", "at most"], float]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    plots: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, unit: str, *values: float) -> None:
        """More runs of a measure."""
        self.measures.setdefault(name, Measure(name, unit, [])).runs.extend(values)

    def median(self, name: str) -> float:
        """Of a measure."""
        return self.measures[name].median

    def ratio(self, name: str, over: str, under: str) -> float:
        """Compare the medians of two measures."""
        value = self.median(over) / max(self.median(under), 1e-12)
        self.ratios.append((name, value))
        return value

    def goal(self, name: str, value: float, how: Literal["at least", "at most"], bound: float) -> None:
        """State a goal beside what was found; nothing fails when it is missed."""
        self.goals.append((name, value, how, bound))

    def skip(self, name: str, reason: str) -> None:
        """Say what was not measured, and why."""
        self.skipped.append((name, reason))

    def plot(
        self,
        name: str,
        title: str,
        axes: tuple[str, str],
        series: Mapping[str, Points],
        *,
        log: str = "",
        steps: bool = False,
    ) -> None:
        """Have something drawn.

        Args:
            name: of the file.
            title: above it.
            axes: what x and y are, with units.
            series: label -> (x, y) of its points.
            log: the axes that are logarithmic, such as ``"y"``.
            steps: horizontal and vertical lines only, as for distributions.
        """
        lines = {label: [[_short(float(each)) for each in column] for column in xy] for label, xy in series.items()}
        self.plots.append({"name": name, "title": title, "axes": axes, "series": lines, "log": log, "steps": steps})

    def distribution(
        self, name: str, title: str, unit: str, series: Mapping[str, Sequence[float]], log: str = ""
    ) -> None:
        """Have the shares of values up to x drawn."""
        shares = np.concatenate([np.arange(1, 100), [99.5, 99.9, 100]])
        points = {label: (np.percentile(values, shares), shares) for label, values in series.items() if len(values)}
        self.plot(name, title, (unit, "% at most that"), points, log=log, steps=True)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "benchmark": self.name,
            "machine": machine(),
            "settings": self.settings,
            "measures": [measure.document() for measure in self.measures.values()],
            "ratios": [{"name": name, "value": _short(value)} for name, value in self.ratios],
            "goals": [
                {"name": name, "value": _short(value), "goal": f"{how} {bound:g}", "met": _met(value, how, bound)}
                for name, value, how, bound in self.goals
            ],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "details": self.details,
            "plots": self.plots,
        }


def alternating(systems: Sequence[SystemT], repeats: int) -> Iterator[SystemT]:
    """Each system once a repeat, there and back again, so that a drift of the machine meets all alike."""
    for repeat in range(repeats):
        yield from systems if repeat % 2 == 0 else reversed(systems)


def machine() -> dict[str, Any]:
    """Where the figures come from, and how busy it was."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def print_json(document: dict[str, Any]) -> None:
    """One document on standard output."""
    print(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())


def print_tables(documents: Iterable[dict[str, Any]]) -> None:
    """Measures, ratios and goals, readable."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    for document in documents:
        settings = ", ".join(f"{name} {value}" for name, value in document["settings"].items())
        table = Table(title=f"{document['benchmark']} ({settings})", title_justify="left", title_style="bold")
        for heading in ("what", "value", "", "runs or goal"):
            table.add_column(heading, justify="left" if heading in {"what", "runs or goal"} else "right")
        for measure in document["measures"]:
            runs = "  ".join(f"{run:,.6g}" for run in measure["runs"]) if len(measure["runs"]) > 1 else ""
            table.add_row(measure["name"], f"{measure['median']:,.6g}", measure["unit"], runs)
        table.add_section()
        for ratio in document["ratios"]:
            table.add_row(ratio["name"], f"{ratio['value']:.3g}", "x", "")
        table.add_section()
        for goal in document["goals"]:
            verdict = "[green]met[/green]" if goal["met"] else "[red]missed[/red]"
            table.add_row(f"goal: {goal['name']}", f"{goal['value']:,.6g}", "", f"{goal['goal']}: {verdict}")
        for skipped in document["skipped"]:
            table.add_row(f"skipped: {skipped['name']}", "", "", skipped["reason"].splitlines()[0])
        console.print(table)


def _met(value: float, how: str, bound: float) -> bool:
    return value >= bound if how == "at least" else value <= bound


def _short(value: float) -> float:
    """Six significant digits say all that a benchmark knows."""
    return float(f"{value:.6g}")
