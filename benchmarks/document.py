"""The figures of docs/performance.md, from what the benchmarks wrote.

    python -m benchmarks.document

Takes every ``benchmarks/results/NAME.json`` over into ``docs/benchmarks``, draws its plots there, and renews the tables
in ``docs/performance.md``: what stands between ``<!-- figures: NAME -->`` and ``<!-- end -->`` is written anew from
``docs/benchmarks/NAME.json``; all else stays. Needs the extra ``bench`` (matplotlib) where there is something to draw.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.__main__ import RESULTS

DOCS: Final = Path(__file__).parent.parent / "docs"
KEPT: Final = DOCS / "benchmarks"
PAGE: Final = DOCS / "performance.md"
_BLOCK: Final = re.compile(r"<!-- figures: (?P<name>\w+) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> int:
    """Renew the page; 1 if it has figures of a benchmark that never ran."""
    KEPT.mkdir(exist_ok=True)
    for path in sorted(RESULTS.glob("*.json")):
        shutil.copy(path, KEPT / path.name)
    missing = []

    def renew(found: re.Match[str]) -> str:
        name = found["name"]
        path = KEPT / f"{name}.json"
        if not path.exists():
            missing.append(name)
            return found[0]
        document = orjson.loads(path.read_bytes())
        return f"<!-- figures: {name} -->\n{figures(name, document)}<!-- end -->"

    PAGE.write_text(_BLOCK.sub(renew, PAGE.read_text()))
    for name in missing:
        print(f"no figures of {name}: run `python -m benchmarks --only {name}`", file=sys.stderr)
    return 1 if missing else 0


def figures(name: str, document: dict[str, Any]) -> str:
    """The results kept as ``name`` in Markdown; their plots are drawn."""
    settings = ", ".join(f"{name} {value}" for name, value in document["settings"].items())
    machine = document["machine"]
    load = machine["load_average"][0]
    lines = [f"*{settings}; {machine['processor']}, {machine['cores']} cores, load {load} at the end.*", ""]
    if document["measures"]:
        lines += ["| what | median | unit | runs |", "|---|---|---|---|"]
        for measure in document["measures"]:
            runs = ", ".join(map(_number, measure["runs"])) if len(measure["runs"]) > 1 else ""
            lines.append(f"| {measure['name']} | {_number(measure['median'])} | {measure['unit']} | {runs} |")
        lines.append("")
    if document["ratios"]:
        lines += ["| ratio | |", "|---|---|"]
        lines += [f"| {ratio['name']} | {ratio['value']:.3g} |" for ratio in document["ratios"]] + [""]
    if document["goals"]:
        lines += ["| goal | found | wanted | |", "|---|---|---|---|"]
        for goal in document["goals"]:
            verdict = "met" if goal["met"] else "**missed**"
            lines.append(f"| {goal['name']} | {_number(goal['value'])} | {goal['goal']} | {verdict} |")
        lines.append("")
    for skipped in document["skipped"]:
        lines += [f"Not measured: {skipped['name']} ({skipped['reason'].splitlines()[0]}).", ""]
    for plot in document.get("plots", []):
        path = KEPT / f"{name}-{plot['name']}.svg"
        _draw(plot, path)
        lines += [f"![{plot['title']}](benchmarks/{path.name})", ""]
    return "\n".join(lines)


def _number(value: float) -> str:
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _draw(plot: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415  # an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.rcParams["svg.hashsalt"] = plot["name"]  # the same figures give the same file
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, (x, y) in plot["series"].items():
        if plot["steps"]:
            axes.step(x, y, label=label, where="post")
        else:
            axes.plot(x, y, label=label, marker="o", markersize=4)
    for axis in plot["log"]:
        getattr(axes, f"set_{axis}scale")("log")
    axes.set_xlabel(plot["axes"][0])
    axes.set_ylabel(plot["axes"][1])
    axes.set_title(plot["title"])
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
