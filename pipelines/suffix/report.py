# SPDX-License-Identifier: Apache-2.0
"""Terminal output and HTML report of a suffix job: accuracy by context length, with memory and without."""

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longmem.wording import counted
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
from pipelines.job.format import FILTERS, nats, percent, percentage_points, short_count, signed_nats, with_interval

TITLES = {"memory": "with memory", "no_memory": "without memory", "backbone": "backbone alone"}
COLOURS = {"memory": WITH_MEMORY, "no_memory": WITHOUT_MEMORY, "backbone": INK}
ACCURACY = {"probability": "accuracy", "information": "accuracy_information"}
"""Accuracy of each scoring in the figures."""
DASHES: dict[str, Any] = {"memory": "-", "no_memory": (0, (4, 1.5)), "backbone": (0, (1, 1.5))}


def print_suffix_result(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print accuracy by context length, and the path of the report."""
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("context", "with memory", "without", "backbone", "points of memory (95%)"):
        table.add_column(title, justify="right")
    for scoring, accuracy in ACCURACY.items():
        table.add_section()
        table.add_row(f"by {scoring}")
        for row in summary["lengths"]:
            table.add_row(
                f"{row['context_tokens']:,}",
                *(f"{percent(row[way][accuracy]['value'])}" for way in TITLES),
                points(row[f"{accuracy}_gain"]),
            )
    console.print(table)
    counts = summary["counts"]
    console.print(
        f"  {counted(counts['examples'], 'example')} ({counts['resumed_examples']:,} scored before), chance "
        f"{percent(summary['chance'])}, {summary['wall_s']:.1f} s"
    )
    console.print(f"  report: {escape(str(out / REPORT_NAME))}", soft_wrap=True)
    if (out / "readings.parquet").is_file():
        console.print(f"  what each candidate read: longmem view {escape(str(out))}", soft_wrap=True)


def write_suffix_report(folder: Path, summary: dict[str, Any]) -> Path:
    """Write `folder/report.html` from the content of summary.json. Raises OutputError."""
    return write_page(
        folder / REPORT_NAME,
        Path(__file__).parent,
        {
            **FILTERS,
            "share": partial(with_interval, form=percent),
            "points": points,
            "nats": partial(with_interval, form=signed_nats),
            "per_token": partial(with_interval, form=nats),
        },
        summary=summary,
        titles=TITLES,
        verdict=_verdict(summary),
        charts={scoring: accuracy_chart(summary["lengths"], summary["chance"], scoring) for scoring in ACCURACY},
        accuracy=ACCURACY,
    )


def accuracy_chart(lengths: list[dict[str, Any]], chance: float, scoring: str) -> Chart | None:
    """Return accuracy by context length; None for one length, which is in the verdict and the table."""
    if len(lengths) == 1:
        return None
    accuracy = ACCURACY[scoring]
    said = [
        f"at {counted(row['context_tokens'], 'token')} {percent(row['memory'][accuracy]['value'])} with memory, "
        f"{percent(row['no_memory'][accuracy]['value'])} without"
        for row in lengths[:-1]
    ]
    draw = partial(_draw_accuracy, lengths, chance, accuracy)
    # the longest context is that of the verdict
    description = f"Accuracy by {scoring} and context length: {'; '.join(said)}."
    wide, narrow = (
        svg(draw, inches, f"{scoring[0]}{name}") for inches, name in ((WIDE_INCHES, "w"), (NARROW_INCHES, "n"))
    )
    return Chart(f"Accuracy by {scoring}", description, wide, narrow)


def points(gain: dict[str, float | None]) -> str:
    """Return a difference of accuracies in percentage points, with its interval."""
    return with_interval(gain, percentage_points)


def _verdict(summary: dict[str, Any]) -> str:
    """Return the finding at the longest context in one sentence."""
    last = summary["lengths"][-1]
    found = "; ".join(f"by {scoring} {_effect(last, accuracy)}" for scoring, accuracy in ACCURACY.items())
    few = "" if last["accuracy_gain"]["low"] is not None else ": a single example is too little for an interval"
    return f"With up to {counted(last['context_tokens'], 'token')} of context, {found}{few}."


def _effect(row: dict[str, Any], accuracy: str) -> str:
    """Return what memory did to one accuracy."""
    with_memory, without = (percent(row[way][accuracy]["value"]) for way in ("memory", "no_memory"))
    gain = row[f"{accuracy}_gain"]
    if gain["low"] is None:
        return f"{with_memory} with memory, {without} without"
    if gain["low"] <= 0 <= gain["high"]:
        return f"memory made no measurable difference to accuracy ({with_memory} with it, {without} without)"
    return f"memory {'raised' if gain['value'] > 0 else 'lowered'} accuracy from {without} to {with_memory}"


def _draw_accuracy(lengths: list[dict[str, Any]], chance: float, accuracy: str, axes: Axes) -> None:
    positions = [row["context_tokens"] for row in lengths]
    for way, colour in COLOURS.items():
        figures = [row[way][accuracy] for row in lengths]
        values = [100 * figure["value"] for figure in figures]
        axes.plot(positions, values, color=colour, linestyle=DASHES[way], marker="o", markersize=3.5)
        if all(figure["low"] is not None for figure in figures) and way != "backbone":
            low, high = ([100 * figure[bound] for figure in figures] for bound in ("low", "high"))
            axes.fill_between(positions, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(100 * chance, color=INK, linewidth=0.9)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(positions))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value, 1024)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.set_xlabel("tokens of context")
