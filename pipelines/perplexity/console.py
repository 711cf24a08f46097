# SPDX-License-Identifier: Apache-2.0
"""Terminal output of a finished perplexity job."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longmem.wording import counted
from pipelines.command.console import printable
from pipelines.job.format import fine_figure, fine_interval, fine_percent, with_interval
from pipelines.job.summary import (
    cause_of_change,
    has_baseline,
    reads_memory,
    side_names,
    why_no_baseline,
    why_no_change,
)
from pipelines.perplexity.spread import spread_remarks


def print_result(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print the table of perplexities, failures, and the path of the report."""
    counts, perplexity, window = summary["counts"], summary["perplexity"], summary.get("window")
    if perplexity:
        table = Table(box=box.SIMPLE_HEAD, title_justify="left")
        ours, theirs = side_names(summary)
        columns = {ours: "longmem"}
        if window:
            columns[f"window {window['window']:,}, stride {window['stride']:,}"] = "window"
            perplexity = {unit: {**sides, "window": window["perplexity"][unit]} for unit, sides in perplexity.items()}
        if has_baseline(summary):
            columns[theirs] = "backbone"
        table.add_column("perplexity")
        for name in columns:
            table.add_column(name, justify="right")
        for unit in ("token", "word", "byte"):
            sides = [perplexity[unit][side] for side in columns.values()]
            table.add_row(f"per {unit}", *(fine_figure(side["value"]) for side in sides))
            if unit == "token":
                table.add_row("  95% interval", *(fine_interval(side) for side in sides), style="dim")
        console.print(table)
        if has_baseline(summary):
            change = with_interval(summary["change"], fine_percent, "95% interval ")
            console.print(f"  change in token perplexity: {change}")
        else:
            console.print(f"  {why_no_baseline(summary)}", soft_wrap=True)
        for line in spread_remarks(summary):
            console.print(f"  {escape(line)}", soft_wrap=True)
        if window:
            change = with_interval(window["change_to_memory"], fine_percent, "95% interval ")
            console.print(f"  {ours}, compared with the windows: {change}")
            console.print(
                f"  computing: LongMem {window['memory_busy_s']:.1f} s, "
                f"{counted(window['windows'], 'window')} {window['busy_s']:.1f} s "
                f"({counted(window['tokens_read'], 'token')} read)"
            )
        if not summary["model"]["trained"] and has_baseline(summary):
            console.print(
                f"  {cause_of_change(summary)}"
                if reads_memory(summary)
                else f"  {why_no_change(summary)}: no change is expected."
            )
    rate = counts["tokens"] / summary["wall_s"] if summary["wall_s"] else 0
    console.print(
        f"  {counted(counts['tokens'], 'token')} of {counted(counts['documents'], 'document')} "
        f"in {summary['wall_s']:.1f} s ({rate:,.0f} tokens/s)"
    )
    for failure in summary["failures"]:
        console.print(
            f"  [red]failed[/] {escape(printable(failure['document']))}: {escape(printable(failure['error']))}",
            soft_wrap=True,
        )
    console.print(f"  report: {escape(str(out / 'report.html'))}", soft_wrap=True)
    if (out / "readings.parquet").exists():
        console.print(f"  tokens: longmem view {escape(str(out))}", soft_wrap=True)
