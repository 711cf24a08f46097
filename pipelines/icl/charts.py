# SPDX-License-Identifier: Apache-2.0
"""Charts of score by demonstrations in memory, with one line per number of demonstrations in context."""

from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from pipelines.html.charts import INK, NARROW_INCHES, WIDE_INCHES, WITH_MEMORY, WITHOUT_MEMORY, Chart, svg

STYLES = ("-", (0, (4, 1.5)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D")

Lines = dict[int, list[tuple[int, float, float]]]
"""Mapping from demonstrations in context to (demonstrations in memory, mean, standard deviation over seeds)."""


def shots_chart(number: int, name: str, task: dict[str, Any], metric: str, rows: list[dict[str, Any]]) -> Chart:
    """Return the chart of a task of summary.json. `rows` are those of its grid to show.

    `number` is the task's position on the page; element ids use it because the name is foreign text.
    """
    longmem, backbone = (lines_of(rows, side) for side in ("longmem", "backbone"))
    baselines = task["baselines"]
    floor = baselines and baselines["majority_accuracy"]
    draw = partial(_draw, longmem, backbone, floor)
    said = [
        f"{shots} in context: " + ", ".join(f"{mean:.1%} with {memory:,} in memory" for memory, mean, _ in line)
        for shots, line in longmem.items()
    ]
    description = f"{metric.replace('_', ' ')} of {name} over demonstrations in memory. {'; '.join(said)}."
    return Chart(name, description, svg(draw, WIDE_INCHES, f"w{number}"), svg(draw, NARROW_INCHES, f"n{number}"))


def lines_of(rows: list[dict[str, Any]], side: str) -> Lines:
    """Return the lines of one model (`longmem` or `backbone`)."""
    lines: Lines = {}
    for row in rows:
        if row["model"] == side:
            lines.setdefault(row["shots"], []).append((row["memory_shots"], row["mean"], row["std"] or 0.0))
    return {shots: sorted(line) for shots, line in sorted(lines.items())}


def _draw(longmem: Lines, backbone: Lines, floor: float | None, axes: Axes) -> None:
    ticks = sorted({memory for line in longmem.values() for memory, _, _ in line})
    # evenly spaced, because shots grow by factors and start at 0
    positions = {memory: position for position, memory in enumerate(ticks)}
    if floor is not None:
        # named in the legend: a word on the line would cover the results near it
        axes.axhline(floor * 100, color=INK, linewidth=1.1, linestyle=(0, (1, 2)), label="most frequent label")
    for index, (shots, line) in enumerate(longmem.items()):
        style, marker = STYLES[index % len(STYLES)], MARKERS[index % len(MARKERS)]
        axes.errorbar(
            # shifted sideways, so that the error bars of several lines do not overlap
            [positions[memory] + 0.04 * (index - (len(longmem) - 1) / 2) for memory, _, _ in line],
            [mean * 100 for _, mean, _ in line],
            [std * 100 for _, _, std in line],
            color=WITH_MEMORY,
            linestyle=style,
            marker=marker,
            markersize=4.5,
            elinewidth=0.9,
            label=f"{shots} in context",
        )
    for index, line in enumerate(backbone.values()):
        # the backbone reads no memory
        _, mean, std = line[0]
        marker = MARKERS[index % len(MARKERS)]
        axes.errorbar(
            [-0.3 + 0.06 * index],
            [mean * 100],
            [std * 100],
            color=WITHOUT_MEMORY,
            marker=marker,
            markersize=4.5,
            elinewidth=0.9,
        )
    narrow = axes.get_figure().get_figwidth() <= NARROW_INCHES[0]  # type: ignore[union-attr]
    axes.legend(
        frameon=False,
        labelcolor=INK,
        fontsize=8.5,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2 if narrow else len(longmem) + 1,
    )
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.xaxis.set_major_locator(FixedLocator(range(len(ticks))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: f"{ticks[round(position)]:,}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.set_xlabel("demonstrations in memory")
