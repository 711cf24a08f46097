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
from pipelines.icl.report import headline, headline_rows, sentence, verdict
from pipelines.job.format import NOTHING, percent

CHOICES = {
    "normalised": "label by highest mean log-probability of its tokens (greedy token: see report)",
    "calibrated": "LongMem with memory: calibrated; others: highest mean log-probability",
    "generated": "answers are generated; exact match and F1 as in SQuAD 1.1",
}


def print_result(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print one table per task, the cost of the demonstrations, and the path of the report."""
    memory_shots, seeds = summary["grid"]["memory_shots"], summary["grid"]["seeds"]
    spread = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    for name, task in summary["tasks"].items():
        metric, scoring = headline(task)
        scores = {(row["model"], row["shots"], row["memory_shots"]): _figure(row) for row in headline_rows(task)}
        title = f"{printable(name)}: {metric.replace('_', ' ')} of {counted(task['items'], 'item')}{spread}"
        table = Table(box=box.SIMPLE_HEAD)
        # one row per grid point: a column per number of demonstrations in memory would not fit 80 columns
        for column in ("in context", "in memory", "LongMem", "backbone"):
            table.add_column(column, justify="right")
        for shots in summary["grid"]["shots"]:
            for number in memory_shots:
                # the backbone reads no memory: its score is that of the first row
                backbone = scores.get(("backbone", shots, number), NOTHING) if number == memory_shots[0] else ""
                table.add_row(f"{shots:,}", f"{number:,}", scores["longmem", shots, number], backbone)
        # a title of the table would wrap at its width
        console.print(escape(title), soft_wrap=True)
        console.print(table)
        console.print(f"  {CHOICES[scoring]}", soft_wrap=True)
        if baselines := task["baselines"]:
            label, share = printable(baselines["majority_label"]), percent(baselines["majority_accuracy"])
            chance = percent(baselines["random_accuracy"])
            console.print(
                escape(f"  chance: {chance}; always {label}, the most frequent label: {share}"), soft_wrap=True
            )
        console.print(escape(f"  {printable(sentence(name, task))}"), soft_wrap=True)
        if said := verdict(task):
            console.print(escape(f"  {said}"), soft_wrap=True)
        for model, label in (("reading", "model reading alone"), ("idf_votes", "votes of shared words alone")):
            for row in task["grid"]:
                if (row["model"], row["metric"]) == (model, "accuracy"):
                    where = f"{row['shots']:,} in context, {row['memory_shots']:,} in memory"
                    console.print(f"  {label}, {where}: {_figure(row)}")
    written, answered = summary["demonstrations"], summary["asked"]
    console.print(
        f"  {written['tokens_encoded']:,} demonstration tokens encoded, {written['tokens_found']:,} found in the store"
    )
    left_out = f", {answered['left_out']:,} of them left-out demonstrations" if answered["left_out"] else ""
    total = answered["items"] + answered["left_out"]
    console.print(f"  {counted(total, 'item')}{left_out}, in {answered['wall_s']:.1f} s", soft_wrap=True)
    console.print(f"  report: {escape(str(out / 'report.html'))}", soft_wrap=True)
    console.print(f"  what each item read: longmem view {escape(str(out))}", soft_wrap=True)


def _figure(row: dict[str, Any]) -> str:
    return percent(row["mean"]) if row["std"] is None else f"{percent(row['mean'])} ± {percent(row['std'])}"
