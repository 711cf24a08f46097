# SPDX-License-Identifier: Apache-2.0
"""Comparison of runs of in-context learning: each cell of the grid, paired over equal items and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float64

from longmem.errors import ConfigError
from longmem.wording import counted
from pipelines.command.console import printable
from pipelines.compare.runs import FinishedRun
from pipelines.icl.metrics import paired_bootstrap

Row = dict[str, Any]
Cell = tuple[str, int, int]
"""Task, demonstrations in context, demonstrations in memory."""


COLUMNS = ("task", "seed", "shots", "memory_shots", "item", "gold", "exact_match", "f1")
LABELS = {"normalised": "longmem", "greedy": "longmem_greedy", "calibrated": "longmem_calibrated"}
"""Columns of predicted labels by scoring; a scoring that a run does not have is left out."""
ANSWERS = ("exact_match", "f1")


def compare_icl(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return the comparison of every cell that all runs have with the first run, as JSON values.

    Raises ConfigError where tasks of one name have other data, or no cell is in all runs; OutputError.
    """
    notes = _check_tasks(runs)
    items = [_items(run) for run in runs]
    cells = [cell for cell in items[0] if all(cell in each for each in items)]
    if not cells:
        raise ConfigError(
            "no cell of the grid is in all runs: "
            + "; ".join(f"{run.name} has {_grid(each)}" for run, each in zip(runs, items, strict=True))
            + "; compare runs with common tasks, --shots and --memory-shots"
        )
    for run, each in zip(runs, items, strict=True):
        if more := len(each) - len(cells):
            notes.append(f"{run.name} has {counted(more, 'more cell')} of the grid, unlike another run: left out.")
    rows = [row for cell in cells for row in _cell_rows(cell, [each[cell] for each in items])]
    if not rows:
        raise ConfigError("no item was answered in all runs; compare runs with common items and seeds")
    return {"cells": rows, "notes": notes}


def _check_tasks(runs: Sequence[FinishedRun]) -> list[str]:
    """Return notes on the tasks that all runs have. Raises ConfigError where their data differ."""
    first = runs[0]
    for run in runs[1:]:
        for name in sorted(first.summary["tasks"].keys() & run.summary["tasks"].keys()):
            ours, theirs = first.summary["tasks"][name], run.summary["tasks"][name]
            for what in ("template", "labels"):
                if ours[what] != theirs[what]:
                    raise ConfigError(
                        f"task {printable(name)} has another {what} in {run.name} than in {first.name}: "
                        f"{theirs[what]} and {ours[what]}; compare runs of the same task"
                    )
            same = all(_selection(run) == _selection(first) for run in runs)
            if same and run.identity["tasks"][name] != first.identity["tasks"][name]:
                raise ConfigError(
                    f"task {printable(name)} has other items or demonstrations in {run.name} than in {first.name}: "
                    "their digests differ; compare runs of the same data"
                )
    notes = []
    if len({run.tokenizer for run in runs}) > 1:
        notes.append("Tokenizers differ: the same demonstrations take other numbers of tokens.")
    if len({max(run.summary["grid"]["shots"]) for run in runs}) > 1:
        notes.append("The largest --shots differs: for one seed, memories hold other demonstrations.")
    return notes


def _selection(run: FinishedRun) -> tuple[Any, ...]:
    """Return what decides, besides the data, which items and demonstrations the digest of a task covers."""
    return run.tokenizer, run.summary["grid"]["limit_items"], run.summary["settings"]["segment_tokens"]


def _items(run: FinishedRun) -> dict[Cell, list[Row]]:
    """Return the rows of items.parquet by cell."""
    cells: dict[Cell, list[Row]] = {}
    held = run.columns("items")
    for row in run.table("items", (*COLUMNS, *(each for each in LABELS.values() if each in held))).to_pylist():
        cells.setdefault((row["task"], row["shots"], row["memory_shots"]), []).append(row)
    return cells


def _cell_rows(cell: Cell, items: Sequence[list[Row]]) -> list[Row]:
    """Return one row per scoring; none without a common item and seed."""
    task, shots, memory_shots = cell
    by_key = [{(row["seed"], row["item"]): row for row in rows} for rows in items]
    seeds = sorted(set.intersection(*({seed for seed, _ in each} for each in by_key)))
    names = [name for seed, name in by_key[0] if seeds and seed == seeds[0]]
    names = [name for name in names if all((seed, name) in each for each in by_key for seed in seeds)]
    if not names:
        return []
    grids = [[[each[seed, name] for name in names] for seed in seeds] for each in by_key]
    for grid in grids[1:]:
        _check_golds(task, grids[0], grid)
    rows = []
    chosen = items[0][0]["exact_match"] is None
    for scoring in [each for each in LABELS if _is_scored(grids, each)] if chosen else ANSWERS:
        scores = [_matrix(grid, LABELS.get(scoring, scoring)) for grid in grids]
        rows.append(
            {
                "task": task,
                "shots": shots,
                "memory_shots": memory_shots,
                "scoring": scoring,
                "seeds": len(seeds),
                "items": len(names),
                "runs": [
                    {
                        "figure": float(ours.mean()),
                        "change": asdict(paired_bootstrap(ours, scores[0])) if index else None,
                    }
                    for index, ours in enumerate(scores)
                ],
            }
        )
    return rows


def _is_scored(grids: Sequence[list[list[Row]]], scoring: str) -> bool:
    """Return whether all runs have a scoring; a calibrated label is missing where there is nothing to calibrate on."""
    column = LABELS[scoring]
    rows = [row for grid in grids for seed_rows in grid for row in seed_rows]
    return all(column in row for row in rows) and (
        scoring != "calibrated" or all(row[column] is not None for row in rows)
    )


def _check_golds(task: str, ours: list[list[Row]], theirs: list[list[Row]]) -> None:
    for row, other in zip(ours[0], theirs[0], strict=True):
        if row["gold"] != other["gold"]:
            raise ConfigError(
                f"item {printable(row['item'])} of task {printable(task)} has the answers {printable(row['gold'])!r} "
                f"and {printable(other['gold'])!r}: it is another item; compare runs of the same data"
            )


def _matrix(grid: list[list[Row]], column: str) -> Float64[np.ndarray, "seeds items"]:
    """Return the score of every item: right or wrong for a label, and the measure itself for a generated answer."""
    if column in ANSWERS:
        return np.array([[row[column] for row in rows] for rows in grid], np.float64)
    return np.array([[row[column] == row["gold"] for row in rows] for rows in grid], np.float64)


def _grid(cells: Mapping[Cell, Any]) -> str:
    tasks = {task for task, _, _ in cells}
    shots, memory_shots = ({cell[index] for cell in cells} for index in (1, 2))
    parts = (", ".join(map(str, sorted(each))) for each in (tasks, shots, memory_shots))
    return printable("tasks {}, shots {}, memory shots {}".format(*parts))
