# SPDX-License-Identifier: Apache-2.0
"""HTML report of synthetic tests: plots of the shares, and a table of all conditions."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FixedLocator, FuncFormatter

from longmem.synthetic.trial import Trial
from longmem.wording import counted, part_of
from pipelines.html.charts import (
    INK,
    NARROW_INCHES,
    WIDE_INCHES,
    WITH_MEMORY,
    WITHOUT_MEMORY,
    Chart,
    svg,
)
from pipelines.html.page import REPORT_NAME, write_page
from pipelines.job.folder import JobFolder
from pipelines.job.format import FILTERS, distinct_percents, short_count, short_percent
from pipelines.probe.console import NAMES

PAIR_TITLES = {"lookup": "Lookup by lines in memory", "labels": "Random labels by demonstrations in memory"}
MOST_QUESTIONS = 200
"""Questions on the page."""
HEAT = LinearSegmentedColormap.from_list("share", ["#b3261e", "#e8c547", "#17713c"])
"""Colour map from red (0) to green (1), readable on light and dark pages."""
ON_DARK, ON_YELLOW = "#ffffff", "#1b1f27"
"""Colours of the numbers in the map: its middle is light."""
MARKERS = ("o", "s", "^", "D")


def write_probe_report(folder: JobFolder, summary: dict[str, Any], trials: Sequence[Trial]) -> None:
    """Write report.html atomically. Raises OutputError."""
    questions = worst_first([trial for trial in trials if trial.answer is not None])
    write_page(
        folder.path / REPORT_NAME,
        Path(__file__).parent,
        {**FILTERS, "percent": short_percent, "question": _in_one_line},
        summary=summary,
        names=NAMES,
        depths=_depths(summary["conditions"]),
        pair_titles=list(PAIR_TITLES.values()),
        title=finding(summary["overall"]),
        charts=charts(summary["conditions"]),
        questions=questions[:MOST_QUESTIONS],
        num_questions=len(questions),
    )


def finding(overall: dict[str, Any]) -> str:
    """Return the result of all questions in one sentence."""
    count = overall["trials"]
    right, without = (round(overall[name]["value"] * count) for name in ("chosen", "chosen_without"))
    low, high = (short_percent(overall["chosen"][bound]) for bound in ("low", "high"))
    if count == 1:
        first, second = ("right" if part else "wrong" for part in (right, without))
        return f"The only answer is chosen {first} with memory (95% interval {low} to {high}), {second} without"
    which = part_of(right, count, "answer")
    also = "none" if without == 0 else "all" if without == count else f"{without:,}"
    return (
        f"{which[0].upper()}{which[1:]} {'are' if right > 1 else 'is'} chosen right with memory (95% interval {low} to "
        f"{high}), {also} without"
    )


def worst_first(trials: Sequence[Trial]) -> list[Trial]:
    """Return wrong answers first, then those that are not greedy, then those whose place was not read."""
    return sorted(trials, key=lambda trial: (trial.chosen, trial.greedy, trial.read))


def _in_one_line(question: str) -> str:
    return question.replace("\n", " · ")


def _depths(conditions: list[dict[str, Any]]) -> dict[float, str]:
    return distinct_percents(row["depth"] for row in conditions if row["subject"] == "passkey")


def _lowest(passkey_rows: list[dict[str, Any]]) -> str:
    """Describe the condition with the lowest greedy share, or the share if it is constant."""
    lengths, depths = ({row[name] for row in passkey_rows} for name in ("memory_tokens", "depth"))
    worst, best = (pick(passkey_rows, key=lambda row: row["greedy"]["value"]) for pick in (min, max))
    share = f"{worst['greedy']['value']:.0%}"
    if worst["greedy"]["value"] == best["greedy"]["value"]:
        return f"{share} at every {' and '.join(['length'] * (len(lengths) > 1) + ['depth'] * (len(depths) > 1))}"
    depth = _depths(passkey_rows)[worst["depth"]]
    return f"lowest {share}, with {counted(worst['memory_tokens'], 'token')} of memory at depth {depth}"


def charts(conditions: list[dict[str, Any]]) -> list[Chart]:
    """Return a heat map of pass keys by depth and length, and curves for each kind of pairs.

    A subject of one condition has no chart: it would repeat the tables.
    """
    drawn = []
    passkeys = [row for row in conditions if row["subject"] == "passkey"]
    if len(passkeys) > 1:
        description = f"Share of greedy pass keys: {_lowest(passkeys)}."
        drawn.append(_chart("Pass keys by depth and length of memory", description, partial(_draw_heat, passkeys), "p"))
    for subject, title in PAIR_TITLES.items():
        rows = [row for row in conditions if row["subject"] == subject]
        if len(rows) > 1:
            best = max(rows, key=lambda row: (row["examples"], row["chosen"]["value"]))
            description = (
                f"With {best['examples']:,} lines in memory and {best['shots']} in context "
                f"{best['chosen']['value']:.0%} of answers are chosen, "
                f"{best['chosen_without']['value']:.0%} without memory."
            )
            drawn.append(_chart(title, description, partial(_draw_pairs, rows), subject))
    return drawn


def _chart(title: str, description: str, draw: Any, prefix: str) -> Chart:
    return Chart(
        title, description, svg(draw, WIDE_INCHES, f"{prefix}-wide"), svg(draw, NARROW_INCHES, f"{prefix}-narrow")
    )


def _draw_heat(rows: list[dict[str, Any]], axes: Axes) -> None:
    lengths = sorted({row["memory_tokens"] for row in rows})
    depths = _depths(rows)
    shares = np.full((len(depths), len(lengths)), np.nan)
    for row in rows:
        shares[list(depths).index(row["depth"]), lengths.index(row["memory_tokens"])] = row["greedy"]["value"]
    axes.grid(visible=False)
    axes.pcolormesh(shares, cmap=HEAT, vmin=0, vmax=1, edgecolors="white", linewidth=1)
    for y, x in np.argwhere(~np.isnan(shares)):
        colour = ON_YELLOW if 0.25 < shares[y, x] < 0.75 else ON_DARK
        axes.text(x + 0.5, y + 0.5, f"{shares[y, x]:.0%}", ha="center", va="center", color=colour, fontweight="bold")
    axes.set_xticks(np.arange(len(lengths)) + 0.5, [short_count(length, 1024) for length in lengths])
    axes.set_yticks(np.arange(len(depths)) + 0.5, list(depths.values()))
    axes.invert_yaxis()
    axes.set_xlabel("tokens of memory")
    axes.set_ylabel("depth")


def _draw_pairs(rows: list[dict[str, Any]], axes: Axes) -> None:
    ticks, all_shots = (sorted({row[name] for row in rows}) for name in ("examples", "shots"))
    # evenly spaced, because lines grow by factors
    positions = {lines: position for position, lines in enumerate(ticks)}
    kinds = [
        ("chosen", WITH_MEMORY, "chosen"),
        ("greedy", WITH_MEMORY, "greedy"),
        ("chosen_without", WITHOUT_MEMORY, "without"),
    ]
    drawn = [(shots, *kind) for kind in kinds for shots in all_shots]
    for index, (shots, name, colour, said) in enumerate(drawn):
        own = sorted((row for row in rows if row["shots"] == shots), key=lambda row: row["examples"])
        shares = [row[name] for row in own]
        bars = [[each["value"] - each["low"] for each in shares], [each["high"] - each["value"] for each in shares]]
        axes.errorbar(
            # shifted sideways, so that the intervals of several lines do not overlap
            [positions[row["examples"]] + 0.05 * (index - (len(drawn) - 1) / 2) for row in own],
            [each["value"] for each in shares],
            bars,
            color=colour,
            linestyle=":" if name == "greedy" else "-",
            marker=MARKERS[all_shots.index(shots) % len(MARKERS)],
            markersize=4.5,
            elinewidth=0.9,
            label=f"{said}, {shots} in context",
        )
    axes.axhline(rows[0]["chance"], color=INK, linewidth=1.1, linestyle=(0, (1, 2)), label="chance")
    narrow = axes.get_figure().get_figwidth() <= NARROW_INCHES[0]  # type: ignore[union-attr]
    # named above the chart: words at the lines would cover other lines
    axes.legend(
        frameon=False,
        labelcolor=INK,
        fontsize=7.5 if narrow else 8.5,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2 if narrow else len(kinds) + 1,
    )
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.set_ylim(-0.03, 1.05)
    axes.xaxis.set_major_locator(FixedLocator(range(len(ticks))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: f"{ticks[round(position)]:,}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("lines in memory")
