# SPDX-License-Identifier: Apache-2.0
"""Terminal output of synthetic tests."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longmem.wording import counted
from pipelines.job.format import distinct_percents, short_percent

NAMES = {"passkey": "pass key", "lookup": "lookup", "labels": "random labels"}


def print_trials(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print one table per subject, and the path of the report."""
    for subject, title in NAMES.items():
        rows = [row for row in summary["conditions"] if row["subject"] == subject]
        if rows:
            console.print(passkey_table(rows, title) if subject == "passkey" else pair_table(rows, title))
    console.print(f"  {counted(summary['num_trials'], 'question')} in {summary['wall_s']:,.1f} s")
    console.print(f"  report: {escape(str(out / 'report.html'))}", soft_wrap=True)
    if (out / "readings.parquet").is_file():
        console.print(f"  what each answer read: longmem view {escape(str(out))}", soft_wrap=True)


def passkey_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Return a table of greedy shares by length and depth, with means over all depths of a length."""
    depths = distinct_percents(row["depth"] for row in rows)
    table = Table(title=f"{title}: greedy, by depth", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("memory", *depths.values(), "chosen", "read", "chance"):
        table.add_column(name, justify="right")
    for length in sorted({row["memory_tokens"] for row in rows}):
        own = {row["depth"]: row for row in rows if row["memory_tokens"] == length}
        table.add_row(
            f"{length:,}",
            *(short_percent(own[depth]["greedy"]["value"]) for depth in depths),
            *(short_percent(sum(row[name]["value"] for row in own.values()) / len(own)) for name in ("chosen", "read")),
            short_percent(rows[0]["chance"]),
        )
    return table


def pair_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Return a table of shares with memory and without, by lines in memory and shots in the local context."""
    # the narrowest form that fits 80 columns with millions of tokens
    table = Table(
        title=f"{title} (chance {short_percent(rows[0]['chance'])})",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        collapse_padding=True,
    )
    for name in ("lines", "tokens", "shots", "chosen", "95%", "without", "greedy", "without", "read"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['examples']:,}",
            f"{row['memory_tokens']:,}",
            str(row["shots"]),
            short_percent(row["chosen"]["value"]),
            f"{100 * row['chosen']['low']:.1f}–{100 * row['chosen']['high']:.1f}",
            *(short_percent(row[name]["value"]) for name in ("chosen_without", "greedy", "greedy_without", "read")),
        )
    return table
