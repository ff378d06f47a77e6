"""``docs/evaluation.md``: what evaluations found, from their JSON documents; and its plots.

    python -m streamer.evaluation.document docs/evaluation/*.json

Each document fills one part of the page beside which it lies; plots go beside the documents. Needs matplotlib, of the
extra ``bench``.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from streamer.evaluation import lineup
from streamer.evaluation.plots import draw

_TITLES: Final = {"globo": "News clicks (globo)", "movielens": "Films (MovieLens small)"}
_NOTES: Final = {
    "globo": "The data hold neither texts nor creation times: content is coarse buckets of the article id, which "
    "follow categories, and an article is dated by its first click. Those of the first two days are older than that.\n",
    "movielens": "Titles, genres and tags as they came; a film is dated by its first rating or tag.\n",
}
_PAPER: Final = {
    "rebalancing": "-18.47 %",
    "facets 3 -> 1, the first one's index": "-13.81 %",
    "facets 3 -> 1, trained alone": "-13.81 %",
    "index selection: at random": "-10.11 %",
    "delayed start": "-1.83 %",
}
_COLUMNS: Final = (
    ("R@100", "recall@100"),
    ("R@500", "recall@500"),
    ("fresh@100", "fresh_recall@100"),
    ("fresh@500", "fresh_recall@500"),
    ("tail@100", "tail_recall@100"),
    ("tail@500", "tail_recall@500"),
    ("cold@100", "cold_recall@100"),
    ("low-count share", "low_exposure_share"),
)
_INTRODUCTION: Final = """\
# Evaluation

Written by `python -m streamer.evaluation.document` from the documents in `docs/evaluation`, which `make evaluate`
produces: do not edit. How it is done, and why it cannot cheat: [decision 15](decisions/0015-evaluation.md).

*fresh*: the target is under 6 hours old. *cold*: it had fewer than 5 engagements. *tail*: it is not among the 200 most
engaged items of the last hour. *low-count share*: of the first 100 places, the share given to items with fewer than 20
engagements so far. *scored*: items whose score was computed for the request alone. *q/s*: requests a second of one
thread, in blocks of 64. All systems answer the same requests, from the same pool, with the same embeddings and the same
prior; in brackets the middle 95 % over resampled users.
"""


def main(paths: list[Path]) -> int:
    """Write the page above the folder in which the documents lie."""
    if not paths:
        sys.stderr.write("give the JSON documents of evaluations\n")
        return 2
    page = paths[0].parent.parent / "evaluation.md"
    page.write_text(_INTRODUCTION + "".join(_part(orjson.loads(path.read_bytes()), path.parent) for path in paths))
    return 0


def _part(found: dict[str, Any], folder: Path) -> str:
    blocks = [
        f"\n## {_TITLES.get(found['data_set'], found['data_set'])}\n",
        _NOTES.get(found["data_set"], ""),
        _protocol(found),
        "### What was wished for\n",
        *(_comparison(each) for each in found["comparisons"]["wished"]),
        "### All systems\n",
        _systems([system for system in found["systems"] if " leaves x " not in system["name"]]),
        "### Ablations\n",
        _ablations(found),
        "### Where it loses\n",
        _losses(found),
        "### The index at the end\n",
        _health(found),
        "### Budgets\n",
        "Recall against items scored: leaves chosen x members read in each.\n",
        _systems([system for system in found["systems"] if " leaves x " in system["name"]]),
        *(f"![{title}]({folder.name}/{name})\n" for title, name in draw(found, folder)),
    ]
    return "\n".join(blocks)


def _protocol(found: dict[str, Any]) -> str:
    window, settings, slices = found["window"], found["settings"], found["slices"]
    refresh = settings["refresh_s"]
    to = "the end of the log" if window["to_ms"] is None else _moment(window["to_ms"])
    pool = "everything created" if settings["pool_s"] is None else f"items engaged in the last {settings['pool_s']:g} s"
    return (
        f"Trained on what happened before {_moment(window['from_ms'])}, asked from there to {to}: "
        f"{found['queries']} requests of {found['users']} users, a sample of {found['eligible']} "
        f"({found['left_out']} more had a target outside of the pool, which nobody can find); "
        f"{slices['fresh']} fresh, {slices['tail']} tail, {slices['cold']} cold. Models trained: {found['seeds']}. "
        f"Pool: {pool}, {found['pool_range'][0]} to {found['pool_range'][1]} items. "
        + ("Models are never refreshed.\n" if refresh is None else f"Models are refreshed every {refresh:g} s.\n")
    )


def _comparison(comparison: dict[str, Any]) -> str:
    scored = " (both where the latter's items scored are met)" if comparison["equal_scored"] else ""
    lines = [
        f"**{comparison['title']}**{scored}\n",
        "| figure | ours | theirs | gain | wanted | |",
        "|---|---|---|---|---|---|",
    ]
    for figure in comparison["figures"]:
        best = f" ({figure['best_of_theirs']})" if len(comparison["theirs"]) > 1 else ""
        lines.append(
            f"| {figure['slice']} R@{figure['cut']} | {_number(figure['ours'])} | {_number(figure['theirs'])}{best} "
            f"| {_gain(figure)} | {_wanted(figure['wanted'])} | {_verdict(figure['met'])} |"
        )
    if (rate := comparison["rate"]) is not None:
        wanted = "" if rate["wanted"] is None else f">= {rate['wanted']:g} x"
        lines.append(
            f"| q/s | {_whole(rate['ours'])} | {_whole(rate['theirs'])} | {_number(rate['ratio'], 3)} x "
            f"| {wanted} | {_verdict(rate['met'])} |"
        )
    return "\n".join(lines) + "\n"


def _systems(systems: list[dict[str, Any]]) -> str:
    lines = [
        "| system | " + " | ".join(title for title, _ in _COLUMNS) + " | scored | q/s |",
        "|---" * (len(_COLUMNS) + 3) + "|",
    ]
    for system in systems:
        cells = [_number(system[key]) for _, key in _COLUMNS]
        if (bounds := system["recall@100_interval"])[0] is not None:
            cells[0] += f" ({_number(bounds[0])} to {_number(bounds[1])})"
        cells += [f"{_whole(system['scored@100'])}/{_whole(system['scored@500'])}"]
        cells += [f"{_whole(system['queries_per_second@100'])}/{_whole(system['queries_per_second@500'])}"]
        lines.append(f"| {system['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ablations(found: dict[str, Any]) -> str:
    if not found["comparisons"]["ablations"]:
        return "Not part of this run.\n"
    lines = [
        "Change of recall when a part is taken away, beside what the paper reports for its own data (engagement",
        "recall; its cut is not known). Where both score items, at equal items scored.\n",
        "| without | R@100 | R@500 | fresh@100 | tail@100 | paper |",
        "|---|---|---|---|---|---|",
    ]
    for ablation in found["comparisons"]["ablations"]:
        by = {(figure["slice"], figure["cut"]): figure for figure in ablation["figures"]}
        cells = [_gain(by[key]) for key in (("all", 100), ("all", 500), ("fresh", 100), ("tail", 100))]
        lines.append(f"| {ablation['title']} | " + " | ".join(cells) + f" | {_PAPER.get(ablation['title'], '-')} |")
    return "\n".join(lines) + "\n"


def _losses(found: dict[str, Any]) -> str:
    """Every figure wished for that was missed, and every system that is better than MFLI with the prior somewhere."""
    lines = [
        f"- {comparison['title']}: {figure['slice']} R@{figure['cut']} {_gain(figure)}, "
        f"wanted {_wanted(figure['wanted'])}."
        for comparison in found["comparisons"]["wished"]
        for figure in comparison["figures"]
        if figure["met"] is False
    ]
    lines += [
        f"- {comparison['title']}: {comparison['rate']['ratio']:.2g} x the queries a second, "
        f"wanted {comparison['rate']['wanted']:g} x."
        for comparison in found["comparisons"]["wished"]
        if comparison["rate"] is not None and comparison["rate"]["met"] is False
    ]
    named = {system["name"]: system for system in found["systems"] if " leaves x " not in system["name"]}
    for ours in (lineup.MFLI_PRIOR, lineup.HYBRID):
        if ours not in named:
            continue
        for title, key in _COLUMNS[:-1]:
            value = named[ours][key]
            better = [
                (system[key], name)
                for name, system in named.items()
                if value is not None and (system[key] or 0.0) > value and "MFLI" not in name
            ]
            if better:
                best, name = max(better)
                lines.append(f"- {ours}, {title}: {_number(value)}, while {name} has {_number(best)}.")
    return "\n".join(lines or ["Nowhere in what was measured here."]) + "\n"


def _health(found: dict[str, Any]) -> str:
    lines = [
        "| index | leaves | bounds | within bounds | codewords active (least) | similarity in / between leaves |",
        "|---|---|---|---|---|---|",
    ]
    for name, health in found["index"].items():
        active = health["codewords_active_share"]
        lines.append(
            f"| {name} | {health['leaves']} | {health['bounds'][0]}-{health['bounds'][1]} "
            f"| {_percent(health['within_bounds_share'])} | {_percent(active['mean'])} ({_percent(active['least'])}) "
            f"| {_number(health['similarity_within'])} / {_number(health['similarity_between'])} |"
        )
    for line, refreshes in found["refreshes"].items():
        if refreshes["count"]:
            shown = {kind: seconds for kind, seconds in refreshes["mean_s"].items() if seconds >= 0.01}
            parts = ", ".join(f"{kind} {seconds:.2g} s" for kind, seconds in shown.items())
            longest = f"the longest {refreshes['max_s']:.1f} s"
            lines.append(f"\nRefreshes of the {line} line: {refreshes['count']}, mean {parts}; {longest}.")
    return "\n".join(lines) + "\n"


def _moment(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _number(value: float | None, digits: int = 3) -> str:
    return (
        "-" if value is None else f"{value:.{digits}f}".removeprefix("0") if abs(value) < 1 else f"{value:.{digits}g}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _gain(figure: dict[str, Any]) -> str:
    if figure["gain"] is None:
        return "-"
    low, high = figure["interval"]
    bounds = "" if low is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * figure['gain']:+.1f} %{bounds}"


def _wanted(value: float | None) -> str:
    return "" if value is None else f">= {100 * value:+.0f} %"


def _verdict(met: bool | None) -> str:  # noqa: FBT001  # a verdict is one word of three
    return {True: "met", False: "**missed**", None: ""}[met]


if __name__ == "__main__":
    raise SystemExit(main([Path(argument) for argument in sys.argv[1:]]))
