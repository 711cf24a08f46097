"""What a finished job prints."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.command.console import printable
from pipelines.job.summary import copies

SIDES = ("longmem", "backbone")


def print_result(console: Console, summary: dict[str, Any], out: Path) -> None:
    """The headline table, failures, and where everything is."""
    counts, perplexity = summary["counts"], summary["perplexity"]
    if perplexity:
        table = Table(box=box.SIMPLE_HEAD, title_justify="left")
        for name in ("perplexity", "with memory", "without memory"):
            table.add_column(name, justify="left" if name == "perplexity" else "right")
        for unit in ("token", "word", "byte"):
            table.add_row(f"per {unit}", *(_figure(perplexity[unit][side]["value"]) for side in SIDES))
            if unit == "token":
                table.add_row("  95% interval", *(_interval(perplexity[unit][side]) for side in SIDES), style="dim")
        console.print(table)
        console.print(f"  change in token perplexity: {_change(summary['change'])}")
        if not summary["model"]["trained"]:
            console.print(
                "  The SideNet is untrained: what changes comes from its untrained copy head alone."
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


def _figure(value: float | None) -> str:
    """Six significant digits: a perplexity per word can have ten before the point."""
    if value is None:
        return "–"
    return f"{value:,.3f}" if value < 1e5 else f"{value:.4g}"


def _interval(figure: dict[str, float | None]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return "–"
    return f"{_figure(figure['low'])} – {_figure(figure['high'])}"


def _change(figure: dict[str, float | None]) -> str:
    if figure["value"] is None:
        return "–"
    text = _percent(figure["value"])
    if figure["low"] is None or figure["high"] is None:
        return text
    return f"{text} (95% interval {_percent(figure['low'])} to {_percent(figure['high'])})"


def _percent(share: float) -> str:
    # + 0.0 turns the minus zero of rounding into zero
    return f"{round(share, 5) + 0.0:+.3%}"
