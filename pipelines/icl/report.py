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
            name: shots_chart(number, name, task, headline(task)[0], headline_rows(task))
            for number, (name, task) in enumerate(summary["tasks"].items())
        },
        headlines={name: headline(task) for name, task in summary["tasks"].items()},
    )


def headline(task: dict[str, Any]) -> tuple[str, str]:
    """Return the main metric and scoring of a task."""
    if not task["baselines"]:
        return "exact_match", "generated"
    calibrated = any(row["scoring"] == "calibrated" for row in task["grid"])
    return "accuracy", "calibrated" if calibrated else "normalised"


def headline_rows(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the grid with the main metric and scoring, by model, shots in context and in memory.

    The backbone, and cells without memory, have no calibrated result; theirs is the one by mean log-probability.
    """
    metric, scoring = headline(task)
    best = {}
    for row in task["grid"]:
        if row["metric"] != metric or row["scoring"] not in (scoring, "normalised"):
            continue
        if row["scoring"] == "calibrated" and row["model"] != "longmem":
            continue
        # calibrated rows come after the others of their cell
        best[row["model"], row["shots"], row["memory_shots"]] = row
    return list(best.values())


def verdict(task: dict[str, Any]) -> str:
    """Return one sentence that compares results with memory to those without."""
    metric, scoring = headline(task)
    scoring = scoring if metric == "accuracy" else metric
    with_memory = [
        comparison
        for comparison in task["comparisons"]
        if comparison["ours"].endswith("in memory") and comparison["metric"] == scoring
        if not comparison["theirs"].endswith("alone") or comparison["theirs"] == "idf votes alone"
    ]
    # of several numbers of shots in context, the fewest: memory alone
    with_memory = [each for each in with_memory if each["ours"] == with_memory[0]["ours"]]
    if not with_memory:
        return "The grid has no cell with memory to compare with one without."
    said = [
        f"{percentage_points(comparison['value'])} points against {comparison['theirs']} "
        f"(95% interval {percentage_points(comparison['low'])} to {percentage_points(comparison['high'])})"
        for comparison in with_memory
    ]
    return f"{with_memory[0]['ours']}: {'; '.join(said)}."
