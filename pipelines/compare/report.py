# SPDX-License-Identifier: Apache-2.0
"""Page of a comparison: one file without scripts or network requests."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from longmem.errors import ConfigError, OutputError
from pipelines.compare.wording import (
    bounds_text,
    change_text,
    is_apart,
    occurrences_text,
    points,
    points_text,
    positions_label,
    positions_text,
    remarks,
    title_of,
    value_text,
    verdicts,
)
from pipelines.html.charts import FAINT, INK, NARROW_INCHES, WIDE_INCHES, WITH_MEMORY, WITHOUT_MEMORY, Chart, svg
from pipelines.html.page import write_page
from pipelines.job.format import FILTERS, percent

MAX_ROWS = 1000
"""Documents of the table: a page with tens of thousands is slow; `--json` has all."""
MAX_LINES = 4
"""Runs that a chart shows, besides the baseline."""
COLOURS = (WITH_MEMORY, WITHOUT_MEMORY, INK, WITH_MEMORY)
MARKERS = ("o", "s", "^", "D")
NARROW_TURN = 40
"""Rotation of the labels on a narrow chart, in degrees: side by side they overprint."""

Row = dict[str, Any]


def write_comparison(path: Path, compared: Row) -> Path:
    """Write the page atomically, and return its path.

    Raises ConfigError for a name that is not one of a page, OutputError if it cannot be written.
    """
    if path.suffix not in (".html", ".htm"):
        raise ConfigError(f"--out must be the name of a page, FILE.html, got {path}")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.absolute().parent}; make it first")
    icl = compared["kind"] == "icl"
    return write_page(
        path,
        Path(__file__).parent,
        {
            **FILTERS,
            "share": percent,
            "bounds": partial(bounds_text, unit=compared.get("unit", "")),
            "delta": partial(change_text, unit=compared.get("unit", "")),
            "points": points,
            "point_bounds": points_text,
            "setting": value_text,
            "positions": positions_text,
            "occurrences": occurrences_text,
        },
        compared=compared,
        names=[run["name"] for run in compared["runs"]],
        title=title_of([run["name"] for run in compared["runs"]]),
        verdicts=verdicts(compared),
        remarks=remarks(compared),
        documents=() if icl else compared["documents"][:MAX_ROWS],
        charts=() if icl else _charts(compared),
        max_lines=MAX_LINES,
        tone=_tone,
    )


def _tone(change: Row | None, lower_is_better: bool) -> str:
    """Return the class of a cell: better or worse where the interval excludes 0, else empty."""
    if change is None or not is_apart(change):
        return ""
    return "better" if (change["value"] < 0) == lower_is_better else "worse"


def _charts(compared: Row) -> list[tuple[str, str, Chart]]:
    """Return title, note and chart of the change along positions, and of the change by frequency."""
    unit = compared["unit"]
    drawn = []
    for title, note, rows, label, axis in (
        (
            "Along the document",
            "by position of the token",
            compared["positions"],
            positions_label,
            "token position, up to",
        ),
        (
            "By occurrences of the token",
            "by the number of times that the predicted token occurs in all compared texts",
            compared["frequencies"],
            occurrences_text,
            "occurrences",
        ),
    ):
        if len(rows) < 2:
            continue
        lines = {
            run["name"]: [row["runs"][index] and row["runs"][index]["change"] for row in rows]
            for index, run in enumerate(compared["runs"][: MAX_LINES + 1])
            if index and any(row["runs"][index] for row in rows)
        }
        draw = partial(_draw, lines, [label(row) for row in rows], unit, axis)
        said = "; ".join(
            f"{name}: "
            + ", ".join(
                f"{change_text(change['value'], unit)} at {label(row)}"
                for row, change in zip(rows, line, strict=True)
                if change
            )
            for name, line in lines.items()
        )
        prefix = "f" if axis == "occurrences" else "p"
        wide = svg(partial(draw, 0), WIDE_INCHES, f"{prefix}w")
        narrow = svg(partial(draw, NARROW_TURN), NARROW_INCHES, f"{prefix}n")
        chart = Chart(title, f"Change {note}. {said}.", wide, narrow)
        drawn.append((title, note, chart))
    return drawn


def _draw(
    lines: dict[str, list[Row | None]], labels: Sequence[str], unit: str, axis: str, turn: int, axes: Axes
) -> None:
    scale = 100 if unit == "perplexity" else 1
    axes.axhline(0, color=FAINT, linewidth=1.2)
    for index, (name, line) in enumerate(lines.items()):
        held = [
            (place, change) for place, change in enumerate(line) if change is not None and change["value"] is not None
        ]
        values = [change["value"] * scale for _, change in held]
        errors = [
            [
                abs((change[side] if change[side] is not None else change["value"]) - change["value"]) * scale
                for _, change in held
            ]
            for side in ("low", "high")
        ]
        axes.errorbar(
            # shifted sideways, so that the intervals of several runs do not overlap
            [place + 0.08 * (index - (len(lines) - 1) / 2) for place, _ in held],
            values,
            errors,
            color=COLOURS[index],
            marker=MARKERS[index],
            linestyle="-" if index < 3 else (0, (4, 1.5)),
            markersize=4.5,
            elinewidth=1.0,
            label=name,
        )
    axes.legend(frameon=False, labelcolor=INK, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes.xaxis.set_major_locator(FixedLocator(range(len(labels))))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda place, _: labels[round(place)] if 0 <= round(place) < len(labels) else "")
    )
    axes.tick_params(axis="x", labelrotation=turn)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}%" if unit == "perplexity" else f"{value:g}")
    )
    axes.set_xlabel(axis)
