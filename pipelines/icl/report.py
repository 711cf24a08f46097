"""report.html of an in-context-learning job: one file that opens anywhere, without scripts or requests."""

from pathlib import Path
from typing import Any

from pipelines.html.page import REPORT_NAME, write_page
from pipelines.icl.charts import shots_chart
from pipelines.job.format import NOTHING, count, duration, figure


def write_report(folder: Path, summary: dict[str, Any]) -> Path:
    """Write `folder/report.html` whole or not at all. `summary` is the content of summary.json. Raises OutputError."""
    return write_page(
        folder / REPORT_NAME,
        Path(__file__).parent,
        {"count": count, "figure": figure, "duration": duration, "percent": percent, "points": points},
        summary=summary,
        verdicts={name: verdict(task) for name, task in summary["tasks"].items()},
        charts={
            name: shots_chart(number, name, task, *headline(task))
            for number, (name, task) in enumerate(summary["tasks"].items())
        },
        headlines={name: headline(task) for name, task in summary["tasks"].items()},
    )


def headline(task: dict[str, Any]) -> tuple[str, str]:
    """Metric and scoring that a task is judged by first."""
    return ("accuracy", "normalised") if task["baselines"] else ("exact_match", "generated")


def verdict(task: dict[str, Any]) -> str:
    """What memory changed, in a sentence."""
    scoring = "normalised" if task["baselines"] else "exact_match"
    of_memory = [
        each for each in task["comparisons"] if each["ours"].endswith("in memory") and each["metric"] == scoring
    ]
    if not of_memory:
        return "The grid has no cell with memory to compare with one without."
    said = [
        f"{points(each['value'])} points against {each['theirs']} "
        f"(95% interval {points(each['low'])} to {points(each['high'])})"
        for each in of_memory
    ]
    return f"{of_memory[0]['ours']}: {'; '.join(said)}."


def percent(share: float | None) -> str:
    """With one decimal."""
    return NOTHING if share is None else f"{share * 100:.1f}%"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if difference is None:
        return NOTHING
    return f"{'−' if difference < 0 else '+'}{abs(difference) * 100:.1f}"
