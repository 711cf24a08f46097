# SPDX-License-Identifier: Apache-2.0
"""HTML report of synthetic tests: plots of the shares, and a table of all conditions."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter

from longmem.wording import counted
from pipelines.html.charts import (
    FAINT,
    INK,
    NARROW_INCHES,
    WIDE_INCHES,
    WITH_MEMORY,
    WITHOUT_MEMORY,
    Chart,
    svg,
)
from pipelines.html.page import write_page
from pipelines.job.folder import JobFolder
from pipelines.job.format import FILTERS, percent, short_count

REPORT_NAME = "report.html"
PAIR_TITLES = {"lookup": "Lookup by lines in memory", "labels": "Random labels by demonstrations in memory"}
MEASURES = {"chosen": "solid", "greedy": "dotted"}
HEAT = LinearSegmentedColormap.from_list("share", ["#b3261e", "#e8c547", "#17713c"])
"""Colour map from red (0) to green (1), readable on light and dark pages."""


def write_probe_report(folder: JobFolder, summary: dict[str, Any]) -> None:
    """Write report.html atomically. Raises OutputError."""
    write_page(
        folder.path / REPORT_NAME,
        Path(__file__).parent,
        {**FILTERS, "percent": percent},
        summary=summary,
        charts=charts(summary["conditions"]),
    )


def _lowest(passkey_rows: list[dict[str, Any]]) -> str:
    """Describe the condition with the lowest greedy share, or the share if it is constant."""
    worst, best = (pick(passkey_rows, key=lambda row: row["greedy"]["value"]) for pick in (min, max))
    share = f"{worst['greedy']['value']:.0%}"
    if worst["greedy"]["value"] == best["greedy"]["value"]:
        return f"{share} at every length and depth"
    return f"lowest {share}, with {counted(worst['memory_tokens'], 'token')} of memory at depth {worst['depth']:.0%}"


def charts(conditions: list[dict[str, Any]]) -> list[Chart]:
    """Return a heat map of pass keys by depth and length, and curves for each kind of pairs, if tested."""
    drawn = []
    passkeys = [row for row in conditions if row["subject"] == "passkey"]
    if passkeys:
        description = f"Share of pass keys written greedily: {_lowest(passkeys)}."
        drawn.append(_chart("Pass keys by depth and length of memory", description, partial(_draw_heat, passkeys), "p"))
    for subject, title in PAIR_TITLES.items():
        rows = [row for row in conditions if row["subject"] == subject]
        if rows:
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
    depths = sorted({row["depth"] for row in rows})
    shares = np.full((len(depths), len(lengths)), np.nan)
    for row in rows:
        shares[depths.index(row["depth"]), lengths.index(row["memory_tokens"])] = row["greedy"]["value"]
    axes.grid(visible=False)
    axes.pcolormesh(shares, cmap=HEAT, vmin=0, vmax=1, edgecolors="white", linewidth=1)
    for y, x in np.argwhere(~np.isnan(shares)):
        axes.text(x + 0.5, y + 0.5, f"{shares[y, x]:.0%}", ha="center", va="center", color="white", fontweight="bold")
    axes.set_xticks(np.arange(len(lengths)) + 0.5, [short_count(length, 1024) for length in lengths])
    axes.set_yticks(np.arange(len(depths)) + 0.5, [f"{depth:.0%}" for depth in depths])
    axes.invert_yaxis()
    axes.set_xlabel("tokens of memory")
    axes.set_ylabel("depth")


def _draw_pairs(rows: list[dict[str, Any]], axes: Axes) -> None:
    for shots in sorted({row["shots"] for row in rows}):
        own = sorted((row for row in rows if row["shots"] == shots), key=lambda row: row["examples"])
        lines = [row["examples"] for row in own]
        for measure, style in MEASURES.items():
            for name, colour in ((measure, WITH_MEMORY), (f"{measure}_without", WITHOUT_MEMORY)):
                values = [row[name]["value"] for row in own]
                axes.plot(lines, values, color=colour, linestyle=style, marker="o", markersize=3.5)
                if name == "chosen":
                    axes.annotate(
                        f"{shots} shots", (lines[-1], values[-1]), color=INK, fontsize=8, ha="right", va="top"
                    )
    axes.axhline(rows[0]["chance"], color=FAINT, linestyle=(0, (2, 2)))
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda _value, _: ""))
    axes.set_xlabel("lines in memory")
