# SPDX-License-Identifier: Apache-2.0
"""HTML report of an in-context-learning job: one file without scripts or network requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longmem.wording import counted
from pipelines.html.page import REPORT_NAME, write_page
from pipelines.icl.results import AnsweredItem
from pipelines.job.format import FILTERS, NOTHING, percent, percentage_points

MAX_ITEMS = 300
"""Items of a task on the page: a page with ten thousand is slow; items.parquet has all."""
MAX_CHARACTERS = 400
"""Characters of an item on the page; its end is kept, because the label follows."""

MODELS = {
    "longmem": "LongMem",
    "backbone": "backbone",
    "reading": "reading alone",
    "votes": "all votes alone",
    "regression": "regression alone",
    "idf_votes": "votes of shared words alone",
}
SCORINGS = {
    "normalised": "mean log-probability",
    "greedy": "greedy first token",
    "calibrated": "calibrated",
    "generated": "generated",
}
MEANS = {**SCORINGS, "calibrated": "calibration", "generated": "generation"}
"""Ways to get an answer, as nouns."""


def write_report(folder: Path, summary: dict[str, Any], items: Mapping[str, Sequence[AnsweredItem]]) -> Path:
    """Write `folder/report.html` atomically. `summary` is the content of summary.json, `items` are those of each task.

    Raises OutputError.
    """
    # only now: it loads matplotlib, and the console takes sentences from here
    from pipelines.icl.charts import shots_chart

    return write_page(
        folder / REPORT_NAME,
        Path(__file__).parent,
        {**FILTERS, "percent": percent, "points": percentage_points, "answers": answers, "cut": cut},
        summary=summary,
        title=title(summary["tasks"]),
        verdicts={name: verdict(task) for name, task in summary["tasks"].items()},
        findings={name: sentence(name, task) for name, task in summary["tasks"].items()},
        grids={name: pivoted(task, summary["grid"]) for name, task in summary["tasks"].items()},
        charts={
            name: shots_chart(number, name, task, headline(task)[0], headline_rows(task))
            for number, (name, task) in enumerate(summary["tasks"].items())
            # of a single cell, a chart would repeat the grid
            if len(summary["grid"]["shots"]) * len(summary["grid"]["memory_shots"]) > 1
        },
        headlines={name: headline(task) for name, task in summary["tasks"].items()},
        items={name: each[:MAX_ITEMS] for name, each in items.items()},
        means=MEANS,
        models=MODELS,
    )


def answers(given: Sequence[tuple[str | None, int]]) -> str:
    """Return the answers of all seeds, with their counts where they differ."""
    names = [(NOTHING if answer is None else answer, times) for answer, times in given]
    return names[0][0] if len(names) == 1 else ", ".join(f"{answer} × {times}" for answer, times in names)


def cut(text: str) -> str:
    """Return the end of a text that is too long for the page."""
    return text if len(text) <= MAX_CHARACTERS else f"…{text[-MAX_CHARACTERS:]}"


def title(tasks: Mapping[str, dict[str, Any]]) -> str:
    """Return the finding of the job as one sentence."""
    if len(tasks) == 1:
        [(name, task)] = tasks.items()
        return sentence(name, task)
    found = {name: task["finding"] for name, task in tasks.items() if task["finding"] is not None}
    if not found:
        return "No demonstration is in memory"
    groups: dict[str, list[str]] = {}
    for name, finding in found.items():
        points = percentage_points(finding["difference"]["value"])
        groups.setdefault(_direction(finding), []).append(f"{name} ({points} points)")
    said = "; ".join(f"{words} {', '.join(groups[words])}" for words in DIRECTIONS if words in groups)
    shots = counted(next(iter(found.values()))["memory_shots"], "demonstration")
    return f"With {shots} in memory, answers are {said}"


MORE, ALIKE, FEWER = "right more often in", "not told apart from none in", "right less often in"
DIRECTIONS = (MORE, ALIKE, FEWER)


def _direction(finding: dict[str, Any]) -> str:
    low, high = finding["difference"]["low"], finding["difference"]["high"]
    if low is None or low <= 0 <= high:
        return ALIKE
    return MORE if low > 0 else FEWER


def sentence(name: str, task: dict[str, Any]) -> str:
    """Return the finding of a task: the most in memory against none."""
    finding = task["finding"]
    if finding is None:
        return f"{name}: the grid has no cell with memory to compare with one without"
    metric = "exact match" if finding["scoring"] == "exact_match" else "accuracy"
    against = "without" if finding["against"] == "longmem" else "of the backbone alone"
    if finding["scoring"] == "calibrated":
        against += ", both calibrated"
    difference = finding["difference"]
    points = f"{percentage_points(difference['value'])} points"
    if difference["low"] is not None:
        points += f", 95% interval {percentage_points(difference['low'])} to {percentage_points(difference['high'])}"
    words = {
        MORE: f"raise {metric} to {percent(finding['ours'])}, from {percent(finding['theirs'])} {against}",
        FEWER: f"lower {metric} to {percent(finding['ours'])}, from {percent(finding['theirs'])} {against}",
        ALIKE: (
            f"cannot be told from none: {metric} {percent(finding['ours'])}, {percent(finding['theirs'])} {against}"
        ),
    }[_direction(finding)]
    context = f" and {finding['shots']:,} in context" if finding["shots"] else ""
    demonstrations = counted(finding["memory_shots"], "demonstration")
    return f"{name}: {demonstrations} in memory{context} {words} ({points})"


@dataclass(frozen=True)
class GridLine:
    """Line of the pivoted grid: one model and scoring, with a cell for each number of demonstrations in memory."""

    model: str
    scoring: str
    cells: list[dict[str, Any] | None]
    """Rows of the grid; None where there is no result. A model that reads no memory has a single cell."""


@dataclass(frozen=True)
class GridPart:
    """Lines of one number of demonstrations in context."""

    shots: int
    fit: float
    """Demonstrations that fitted into the context, on average."""
    lines: list[GridLine]


def pivoted(task: dict[str, Any], grid: dict[str, Any]) -> list[GridPart]:
    """Return the main metric of a task by demonstrations in context and memory, LongMem next to the backbone."""
    metric, _ = headline(task)
    rows = {
        (row["shots"], row["memory_shots"], row["model"], row["scoring"]): row
        for row in task["grid"]
        if row["metric"] == metric
    }
    kinds = list(dict.fromkeys((scoring, model) for _, _, model, scoring in rows))
    # LongMem next to the backbone, the parts of a mixture after both
    order = {scoring: number for number, scoring in enumerate(SCORINGS)}, {name: at for at, name in enumerate(MODELS)}
    kinds.sort(key=lambda kind: (order[0][kind[0]], order[1][kind[1]]))
    parts = []
    for shots in grid["shots"]:
        lines = []
        for scoring, model in kinds:
            cells = [rows.get((shots, memory_shots, model, scoring)) for memory_shots in grid["memory_shots"]]
            reads = model != "backbone" or scoring == "calibrated"
            lines.append(GridLine(MODELS[model], SCORINGS[scoring], cells if reads else cells[:1]))
        first = next(row for row in task["grid"] if row["shots"] == shots)
        parts.append(GridPart(shots, first["shots_in_context"], lines))
    return parts


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
    """Return one sentence that compares results with memory to those without; empty where the finding says all."""
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
    if task["finding"] is not None and task["finding"]["against"] == "longmem":
        # of the same cells
        with_memory = [each for each in with_memory if each["theirs"] != "neither"]
    if not with_memory:
        return ""
    said = [
        f"{percentage_points(comparison['value'])} points against {_spoken(comparison['theirs'])} "
        f"(95% interval {percentage_points(comparison['low'])} to {percentage_points(comparison['high'])})"
        for comparison in with_memory
    ]
    return f"{with_memory[0]['ours']}: {'; '.join(said)}."


def _spoken(corner: str) -> str:
    return "neither memory nor context" if corner == "neither" else corner
