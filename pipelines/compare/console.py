# SPDX-License-Identifier: Apache-2.0
"""Terminal output of a comparison: what differs first, then a table for each way of cutting the text."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from longmem.wording import counted
from pipelines.command.console import printable
from pipelines.compare.wording import (
    bounds_text,
    change_text,
    is_apart,
    occurrences_text,
    points,
    points_text,
    positions_text,
    remarks,
    title_of,
    value_text,
    verdicts,
)
from pipelines.job.format import NOTHING, count, figure, percent

MAX_DOCUMENTS = 20
"""Documents of one table on a terminal: those that changed most. Page and JSON have all."""

Row = dict[str, Any]


def print_comparison(console: Console, compared: Row) -> None:
    """Print differences, verdicts, tables and remarks; a table fits 80 columns."""
    names = [printable(run["name"]) for run in compared["runs"]]
    _print_differences(console, compared["differences"], names)
    if compared["kind"] == "icl":
        _print_cells(console, compared["cells"], names)
    else:
        _print_whole(console, compared, names)
        for index in range(1, len(names)):
            _print_parts(console, compared, names, index)
    for line in verdicts(compared):
        console.print(Text(f"  {printable(line)}", style="bold"), soft_wrap=True)
    for line in remarks(compared):
        console.print(Text(f"  {printable(line)}"), soft_wrap=True)


def _print_differences(console: Console, differences: Sequence[Row], names: Sequence[str]) -> None:
    if not differences:
        console.print("  The runs have the same model, settings and versions.\n")
        return
    table = _table("what differs", [""], names)
    for each in differences:
        table.add_row(Text(each["name"].replace("_", " ")), *(Text(value_text(value)) for value in each["values"]))
    console.print(table)


def _print_whole(console: Console, compared: Row, names: Sequence[str]) -> None:
    unit = compared["unit"]
    units = counted(compared["count"], compared["counted"].removesuffix("s"))
    title = f"{unit} of {units}, {counted(len(compared['documents']), 'document')}"
    alone = ["backbone"] if compared["has_baseline"] else []
    table = _table(title, ["run"], ["LongMem", *alone, "median document", "change", "95% interval"])
    for name, row in zip(names, compared["whole"], strict=True):
        table.add_row(
            Text(name),
            figure(row["figure"]["value"]),
            *(figure(row["without_memory"]["value"]) for _ in alone),
            figure(row["median"]),
            *_change(row["change"], unit),
        )
    console.print(table)


def _print_parts(console: Console, compared: Row, names: Sequence[str], index: int) -> None:
    """Print the tables of one run by document, position and frequency."""
    unit, columns = compared["unit"], [names[0], names[index], "change", "95% interval"]
    documents = sorted(compared["documents"], key=lambda row: -abs(row["runs"][index]["change"]["value"] or 0))
    shown = documents[:MAX_DOCUMENTS]
    for title, head, rows, label in (
        ("by document", ["document", compared["counted"]], shown, lambda row: printable(row["document"])),
        ("by position", ["from – to", "tokens"], compared["positions"], positions_text),
        ("by occurrences of the token", ["occurrences", "tokens"], compared["frequencies"], occurrences_text),
    ):
        if not any(row["runs"][index] for row in rows):
            continue
        table = _table(f"{title}: {title_of([names[0], names[index]])}", head[:1], [*head[1:], *columns])
        for row in (each for each in rows if each["runs"][index] is not None):
            both = (figure(row["runs"][side]["figure"]["value"]) for side in (0, index))
            table.add_row(Text(label(row)), count(row["count"]), *both, *_change(row["runs"][index]["change"], unit))
        console.print(table)
        if rows is shown and (left := len(documents) - len(shown)):
            console.print(f"  {counted(left, 'more document')} changed less: see --out or --json")


def _print_cells(console: Console, cells: Sequence[Row], names: Sequence[str]) -> None:
    for index in range(1, len(names)):
        title = f"accuracy by cell: {title_of([names[0], names[index]])}"
        table = _table(title, ["task"], ["ctx", "mem", "scoring", names[0], names[index], "points", "95%"])
        for cell in cells:
            ours, theirs = (cell["runs"][side] for side in (index, 0))
            change = ours["change"]
            table.add_row(
                Text(printable(cell["task"])),
                f"{cell['shots']:,}",
                f"{cell['memory_shots']:,}",
                cell["scoring"].replace("_", " "),
                percent(theirs["figure"]),
                percent(ours["figure"]),
                points(change),
                points_text(change),
                style="bold" if is_apart(change) else None,
            )
        console.print(table)
    console.print("  ctx, mem: demonstrations in context and in memory; bold: interval without 0", style="dim")


def _change(change: Row | None, unit: str) -> tuple[str, str]:
    if change is None:
        return NOTHING, NOTHING
    return change_text(change["value"], unit), bounds_text(change, unit)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left", padding=(0, 1))
    for name in left:
        table.add_column(escape(name), overflow="fold")
    for name in right:
        table.add_column(escape(name), justify="right", overflow="fold")
    return table
