# SPDX-License-Identifier: Apache-2.0
"""HTML report of an in-context-learning job: one file without scripts or network requests."""

from pathlib import Path
from typing import Any

from pipelines.html.page import REPORT_NAME, write_page
from pipelines.icl.charts import shots_chart
from pipelines.job.format import FILTERS, percent, percentage_points


def write_report(folder: Path, summary: dict[str, Any]) -> Path:
    """Write `folder/report.html` atomically. `summary` is the content of summary.json. Raises OutputError."""
    return write_page(
        folder / REPORT_NAME,
        Path(__file__).parent,
        {**FILTERS, "percent": percent, "points": percentage_points},
        summary=summary,
        verdicts={name: verdict(task) for name, task in summary["tasks"].items()},
        charts={
            name: shots_chart(number, name, task, *headline(task))
            for number, (name, task) in enumerate(summary["tasks"].items())
        },
        headlines={name: headline(task) for name, task in summary["tasks"].items()},
    )


def headline(task: dict[str, Any]) -> tuple[str, str]:
    """Return the main metric and scoring of a task."""
    return ("accuracy", "normalised") if task["baselines"] else ("exact_match", "generated")


def verdict(task: dict[str, Any]) -> str:
    """Return one sentence that compares results with memory to those without."""
    scoring = "normalised" if task["baselines"] else "exact_match"
    with_memory = [
        comparison
        for comparison in task["comparisons"]
        if comparison["ours"].endswith("in memory") and comparison["metric"] == scoring
    ]
    if not with_memory:
        return "The grid has no cell with memory to compare with one without."
    said = [
        f"{percentage_points(comparison['value'])} points against {comparison['theirs']} "
        f"(95% interval {percentage_points(comparison['low'])} to {percentage_points(comparison['high'])})"
        for comparison in with_memory
    ]
    return f"{with_memory[0]['ours']}: {'; '.join(said)}."
