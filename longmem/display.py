# SPDX-License-Identifier: Apache-2.0
"""HTML of objects in notebooks: tables without colours of their own, which suit light and dark themes."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from longmem.system.redaction import redacted

BAR_CHART_WIDTH, BAR_CHART_HEIGHT = 480, 60
"""Size of a chart in CSS pixels."""
GAINED, COST = "#2a7f62", "#b5473c"


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """Return a table of one name and one value per row."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{_text(name)}</th>{_cell(each)}</tr>" for name, each in facts.items()
    )
    return f"<div><b>{_text(title)}</b><table>{rows}</table></div>"


def rows_html(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a heading per column."""
    head = "".join(f"<th style='text-align:left'>{_text(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def bars_html(values: Sequence[float], label: str, unit: str) -> str:
    """Return a chart of one bar per value, above the line for a gain and below it for a cost; a bar's tooltip has its
    number."""
    largest = max((abs(value) for value in values), default=0.0) or 1.0
    middle, width = BAR_CHART_HEIGHT / 2, BAR_CHART_WIDTH / max(1, len(values))
    bars = []
    for index, value in enumerate(values):
        height = max(0.5, abs(value) / largest * middle)
        top = middle - height if value >= 0 else middle
        bars.append(
            f"<rect x='{index * width:.2f}' y='{top:.2f}' width='{max(0.5, width * 0.9):.2f}' height='{height:.2f}' "
            f"fill='{GAINED if value >= 0 else COST}'><title>{index}: {value:+.4f} {_text(unit)}</title></rect>"
        )
    line = f"<line x1='0' x2='{BAR_CHART_WIDTH}' y1='{middle}' y2='{middle}' stroke='currentColor' stroke-width='0.5'/>"
    return (
        f"<div>{_text(label)}</div><svg role='img' aria-label='{_text(label)}' width='{BAR_CHART_WIDTH}' "
        f"height='{BAR_CHART_HEIGHT}'>{''.join(bars)}{line}</svg>"
    )


def _cell(value: object) -> str:
    return f"<td style='text-align:left'>{_text(value)}</td>"


def _text(value: object) -> str:
    return escape(redacted(str(value)))
