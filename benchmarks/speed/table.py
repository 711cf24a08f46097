# SPDX-License-Identifier: Apache-2.0
"""Stored result of one benchmark: JSON, a Markdown table, and a bar chart."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.results import write_results
from benchmarks.speed.timing import Timing
from longmem.wording import counted

matplotlib.use("Agg")


@dataclass(frozen=True)
class BenchmarkRow:
    """One case of a benchmark."""

    name: str
    timing: Timing
    notes: dict[str, str] = field(default_factory=dict)
    """Additional columns."""


@dataclass(frozen=True)
class SpeedTable:
    """Cases timed in turns; ratios are relative to the first one.

    CPU time is the sum over all threads of this process. On a shared machine it is more reliable than wall-clock time.
    """

    title: str
    lines: list[BenchmarkRow]
    settings: dict[str, Any]
    not_run: dict[str, str] = field(default_factory=dict)
    """Cases that could not run, with the reason."""

    def markdown(self) -> str:
        columns = list(dict.fromkeys(name for line in self.lines for name in line.notes))
        first = self.lines[0].timing
        cpu_columns = ["CPU ms", "CPU ratio"] if first.cpu_s else []
        header = ["case", "median ms", "spread", "ratio", *cpu_columns, *columns]
        rows = [header, ["---"] * len(header)]
        for line in self.lines:
            timing = line.timing
            rows.append(
                [
                    line.name,
                    f"{1000 * timing.median_s:,.1f}",
                    f"{timing.spread:.0%}",
                    f"{timing.median_s / first.median_s:.2f}",
                    *self._cpu_cells(timing, first),
                    *(line.notes.get(column, "") for column in columns),
                ]
            )
        text = f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
        return text + "".join(f"\n{name}: not run, {reason}\n" for name, reason in self.not_run.items())

    @staticmethod
    def _cpu_cells(timing: Timing, first: Timing) -> list[str]:
        if not first.cpu_s:
            return []
        if not timing.cpu_s:
            return ["", ""]
        return [f"{1000 * timing.cpu_median_s:,.1f}", f"{timing.cpu_median_s / first.cpu_median_s:.2f}"]

    def figures(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "settings": self.settings,
            "cases": {line.name: line.timing.figures() | line.notes for line in self.lines},
            "not_run": self.not_run,
        }


def write_tables(out: Path, tables: list[SpeedTable]) -> str:
    """Write OUT.json, OUT.md and OUT.png; return the Markdown. Raises OutputError."""
    text = "\n".join(table.markdown() for table in tables)
    figures = {"tables": [table.figures() for table in tables]}
    write_results(out.with_suffix(".json"), figures, counted(len(tables), "table"), text)
    _draw(out.with_suffix(".png"), tables)
    return text


def _draw(path: Path, tables: list[SpeedTable]) -> None:
    heights = [0.35 * len(table.lines) + 0.9 for table in tables]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    axes = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, table in zip(axes, tables, strict=True):
        names = [line.name for line in table.lines]
        medians = [1000 * line.timing.median_s for line in table.lines]
        lows = [1000 * (line.timing.median_s - min(line.timing.wall_s)) for line in table.lines]
        highs = [1000 * (max(line.timing.wall_s) - line.timing.median_s) for line in table.lines]
        axis.barh(names, medians, xerr=[lows, highs], color="#4c78a8", ecolor="#555555")
        axis.invert_yaxis()
        axis.set_title(table.title, fontsize=9, loc="left")
        axis.set_xlabel("ms (median; whiskers: all runs)", fontsize=8)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)
