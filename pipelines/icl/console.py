# SPDX-License-Identifier: Apache-2.0
"""Terminal output of a finished in-context-learning job."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longmem.wording import counted
from pipelines.command.console import printable
from pipelines.icl.report import headline, headline_rows, verdict
from pipelines.job.format import NOTHING, percent


def print_result(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print one table per task, the cost of the demonstrations, and the path of the report."""
    memory_shots = summary["grid"]["memory_shots"]
    for name, task in summary["tasks"].items():
        metric, _ = headline(task)
        scores = {
            (row["model"], row["shots"], row["memory_shots"]): f"{percent(row['mean'])} ± {percent(row['std'])}"
            for row in headline_rows(task)
        }
        title = f"{printable(name)}: {metric.replace('_', ' ')} of {counted(task['items'], 'item')}"
        table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left")
        # one row per grid point: a column per number of demonstrations in memory would not fit 80 columns
        for column in ("in context", "in memory", "LongMem", "backbone"):
            table.add_column(column, justify="right")
        for shots in summary["grid"]["shots"]:
            for number in memory_shots:
                # the backbone reads no memory: its score is that of the first row
                backbone = scores.get(("backbone", shots, number), NOTHING) if number == memory_shots[0] else ""
                table.add_row(f"{shots:,}", f"{number:,}", scores["longmem", shots, number], backbone)
        console.print(table)
        if baselines := task["baselines"]:
            label, share = printable(baselines["majority_label"]), percent(baselines["majority_accuracy"])
            console.print(escape(f"  always {label}: {share}; any label: {percent(baselines['random_accuracy'])}"))
        console.print(escape(f"  {verdict(task)}"), soft_wrap=True)
        for model, label in (("reading", "model reading alone"), ("idf_votes", "votes of shared words alone")):
            for row in task["grid"]:
                if (row["model"], row["metric"]) == (model, "accuracy"):
                    where = f"{row['shots']:,} in context, {row['memory_shots']:,} in memory"
                    console.print(f"  {label}, {where}: {percent(row['mean'])} ± {percent(row['std'])}")
    written, answered = summary["demonstrations"], summary["asked"]
    console.print(
        f"  {written['tokens_encoded']:,} demonstration tokens encoded, {written['tokens_found']:,} found in the store"
    )
    console.print(f"  {counted(answered['items'], 'item')} in {answered['wall_s']:.1f} s")
    console.print(f"  report: {escape(str(out / 'report.html'))}", soft_wrap=True)
