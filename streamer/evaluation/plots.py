"""What an evaluation looks like: recall against items scored, over the day; leaf sizes; use of codewords."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamer.evaluation import lineup

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CURVES: Final = (lineup.MFLI_PRIOR, lineup.RQ, lineup.ONE_FACET, lineup.UNBALANCED)
_POINTS: Final = (lineup.ANN, lineup.ANN_DIMENSION, lineup.MFLI)
_ANN: Final = lineup.ANN_PRIOR.replace("{}x", "")

Points = tuple[list[float], list[float]]


def draw(found: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Draw everything as SVG; (title, file name) of each plot."""
    data = found["data_set"]
    drawn = []

    def add(name: str, title: str, axes: tuple[str, str], series: Mapping[str, Points], log: str = "") -> None:
        series = {label: points for label, points in series.items() if points[0]}
        if series:
            drawn.append((title, f"{data}-{name}.svg"))
            _figure(folder / drawn[-1][1], title, axes, series, log)

    for key, title in (("recall@100", "Recall@100"), ("fresh_recall@100", "Recall@100 of fresh targets")):
        axes = ("items scored per query", title)
        add(key.replace("@", "-").replace("_", "-"), f"{title} against items scored", axes, _curves(found, key), "x")
    hours = {label: (list(range(24)), values) for label, values in found["by_hour"]["recall"].items()}
    add("by-hour", "Recall@100 over the day", ("hour, UTC", "Recall@100"), _known(hours))
    percent = [float(each) for each in range(101)]
    sizes = {name: (health["size_percentiles"], percent) for name, health in found["index"].items()}
    add("leaf-sizes", "Leaf sizes at the end", ("items in a leaf", "% of leaves with at most that"), sizes, "x")
    usage = {
        name: (list(map(float, range(1, len(health["codeword_usage"]) + 1))), _shares(health["codeword_usage"]))
        for name, health in found["index"].items()
    }
    axes = ("codeword, most used first", "share of its layer's items")
    add("code-usage", "Use of codewords at the end, mean of facets and layers", axes, usage)
    return drawn


def _curves(found: dict[str, Any], key: str) -> dict[str, Points]:
    named = {system["name"]: system for system in found["systems"]}
    out: dict[str, Points] = {}
    for curve in _CURVES:
        out[curve] = _points([system for name, system in named.items() if lineup.is_on_curve(name, curve)], key)
    over = [system for name, system in named.items() if name.startswith("multi-ANN ") and name.endswith("x + prior")]
    out["multi-ANN over-fetched + prior"] = _points(over, key)
    for name in _POINTS:
        out[name] = _points([named[name]] if name in named else [], key)
    return out


def _points(systems: list[dict[str, Any]], key: str) -> Points:
    pairs = sorted((system["scored@100"], system[key]) for system in systems if system[key] is not None)
    return [x for x, _ in pairs], [y for _, y in pairs]


def _known(series: dict[str, tuple[list[int], list[float | None]]]) -> dict[str, Points]:
    out: dict[str, Points] = {}
    for label, (x, y) in series.items():
        pairs = [(float(a), b) for a, b in zip(x, y, strict=True) if b is not None]
        out[label] = [a for a, _ in pairs], [b for _, b in pairs]
    return out


def _shares(counts: list[float]) -> list[float]:
    whole = np.array(counts)
    shares: list[float] = (whole / max(1.0, whole.sum())).tolist()
    return shares


def _figure(path: Path, title: str, labels: tuple[str, str], series: Mapping[str, Points], log: str) -> None:
    import matplotlib as mpl  # noqa: PLC0415  # an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.rcParams["svg.hashsalt"] = path.stem  # the same figures give the same file
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, (x, y) in series.items():
        axes.plot(x, y, label=label, marker="o" if len(x) < 30 else "", markersize=4)
    for axis in log:
        getattr(axes, f"set_{axis}scale")("log")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, format="svg", metadata={"Date": None})
