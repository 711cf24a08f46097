# SPDX-License-Identifier: Apache-2.0
"""Terminal output of a finished perplexity job."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.command.console import printable
from pipelines.job.format import fine_figure, fine_interval, fine_percent, with_interval
from pipelines.job.summary import copies

SIDES = ("longmem", "backbone")


def print_result(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print the table of perplexities, failures, and the path of the report."""
    counts, perplexity = summary["counts"], summary["perplexity"]
    if perplexity:
        table = Table(box=box.SIMPLE_HEAD, title_justify="left")
        for name in ("perplexity", "with memory", "without memory"):
            table.add_column(name, justify="left" if name == "perplexity" else "right")
        for unit in ("token", "word", "byte"):
            table.add_row(f"per {unit}", *(fine_figure(perplexity[unit][side]["value"]) for side in SIDES))
            if unit == "token":
                table.add_row("  95% interval", *(fine_interval(perplexity[unit][side]) for side in SIDES), style="dim")
        console.print(table)
        console.print(
            f"  change in token perplexity: {with_interval(summary['change'], fine_percent, '95% interval ')}"
        )
        if not summary["model"]["trained"]:
            console.print(
                "  The SideNet is untrained: the change comes from its untrained copy head alone."
                if copies(summary)
                else "  The SideNet is untrained: it equals its backbone, so no change is expected."
            )
    rate = counts["tokens"] / summary["wall_s"] if summary["wall_s"] else 0
    console.print(
        f"  {counts['tokens']:,} tokens of {counts['documents']:,} document{'s' if counts['documents'] != 1 else ''} "
        f"in {summary['wall_s']:.1f} s ({rate:,.0f} tokens/s)"
    )
    for failure in summary["failures"]:
        console.print(
            f"  [red]failed[/] {escape(printable(failure['document']))}: {escape(printable(failure['error']))}",
            soft_wrap=True,
        )
    console.print(f"  report: {escape(str(out / 'report.html'))}", soft_wrap=True)
