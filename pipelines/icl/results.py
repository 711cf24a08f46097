"""From a journal to tables: one row per item and cell, one per place of the grid, and what they say together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.icl.metrics import (
    accuracy,
    answer_f1,
    distance_of_shares,
    exact_match,
    macro_f1,
    paired_bootstrap,
)
from pipelines.icl.records import IclJournal, ItemResult, LabelScores
from pipelines.icl.task_data import GridPoint, PreparedTask

ITEM_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("seed", pa.int64()),
        ("shots", pa.int64()),
        ("memory_shots", pa.int64()),
        ("item", pa.string()),
        ("shots_in_context", pa.int64()),
        ("num_tokens", pa.int64()),
        ("gold", pa.string()),
        ("longmem", pa.string()),
        ("longmem_greedy", pa.string()),
        ("backbone", pa.string()),
        ("backbone_greedy", pa.string()),
        ("longmem_logprobs", pa.list_(pa.float64())),
        ("backbone_logprobs", pa.list_(pa.float64())),
        ("answer", pa.string()),
        ("exact_match", pa.float64()),
        ("f1", pa.float64()),
    ]
)
"""Predicted labels by mean log-probability of a label's tokens, and by greedy first token (null: the most probable
token begins no label); log-probabilities in the order of the task's labels. The last three columns are of generated
answers."""

GRID_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("shots", pa.int64()),
        ("memory_shots", pa.int64()),
        ("model", pa.string()),
        ("scoring", pa.string()),
        ("metric", pa.string()),
        ("mean", pa.float64()),
        ("std", pa.float64()),
        ("seeds", pa.int64()),
        ("items", pa.int64()),
        ("shots_in_context", pa.float64()),
        ("tokens_per_item", pa.float64()),
        ("bias", pa.float64()),
    ]
)
"""`std` is the sample deviation over seeds (null for one seed); `bias` the distance of the distribution of predictions
from that of the golds."""

SIDES = ("longmem", "backbone")
SCORINGS = ("normalised", "greedy")


def item_rows(task: PreparedTask, journal: IclJournal, cells: Sequence[GridPoint]) -> list[dict[str, Any]]:
    """Rows of items.parquet, cell by cell, items in the order of the task's."""
    return [
        _item_row(task, cell, journal.results[cell][index])
        for cell in cells
        if cell.task == task.task.name
        for index in range(len(task.items))
    ]


def _item_row(task: PreparedTask, cell: GridPoint, result: ItemResult) -> dict[str, Any]:
    item = task.items[result.item]
    row: dict[str, Any] = dict.fromkeys(ITEM_SCHEMA.names)
    row |= asdict(cell) | {
        "item": item.example.name,
        "shots_in_context": result.shots,
        "num_tokens": result.num_tokens,
        "gold": item.example.answers[0],
    }
    if result.answer is not None:
        row["answer"] = result.answer
        row["exact_match"] = exact_match(result.answer, item.example.answers)
        row["f1"] = answer_f1(result.answer, item.example.answers)
    for side in SIDES:
        scores: LabelScores | None = getattr(result, side)
        if scores is not None:
            row[side], row[f"{side}_greedy"] = predict(task, result.item, scores)
            row[f"{side}_logprobs"] = scores.logprobs
    return row


def predict(task: PreparedTask, index: int, scores: LabelScores) -> tuple[str, str | None]:
    """The label with the highest mean log-probability of its tokens, and the one that the most probable token begins;
    where several labels begin with that token, the one of them that scores highest."""
    targets = task.items[index].targets
    means = {
        label: logprob / len(target) for (label, target), logprob in zip(targets.items(), scores.logprobs, strict=True)
    }
    greedy = [label for label, target in targets.items() if target[0] == scores.first_choice]
    return max(means, key=means.__getitem__), max(greedy, key=means.__getitem__, default=None)


class TaskResults:
    """Everything that is said of one task."""

    def __init__(self, task: PreparedTask, rows: list[dict[str, Any]]) -> None:
        self._task = task
        self._cells: dict[tuple[int, int], dict[int, list[dict[str, Any]]]] = {}
        for row in rows:
            seeds = self._cells.setdefault((row["shots"], row["memory_shots"]), {})
            seeds.setdefault(row["seed"], []).append(row)

    def grid(self) -> list[dict[str, Any]]:
        """Rows of grid.parquet."""
        rows = []
        for (shots, memory_shots), seeds in sorted(self._cells.items()):
            every = [row for of_seed in seeds.values() for row in of_seed]
            common = {
                "task": self._task.task.name,
                "shots": shots,
                "memory_shots": memory_shots,
                "seeds": len(seeds),
                "items": len(self._task.items),
                "shots_in_context": fmean(row["shots_in_context"] for row in every),
                "tokens_per_item": fmean(row["num_tokens"] for row in every),
            }
            for measured in self._measures(list(seeds.values())):
                rows.append(common | measured)
        return rows

    def _measures(self, seeds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        if self._task.task.generates:
            return [
                {"model": "longmem", "scoring": "generated", "metric": metric, "bias": None}
                | _mean_and_std([fmean(row[metric] for row in rows) for rows in seeds])
                for metric in ("exact_match", "f1")
            ]
        measures = []
        for side in SIDES:
            for scoring in SCORINGS:
                column = side if scoring == "normalised" else f"{side}_greedy"
                pairs = [([row["gold"] for row in rows], [row[column] for row in rows]) for rows in seeds]
                bias = fmean(distance_of_shares(*pair) for pair in pairs)
                for metric, function in (("accuracy", accuracy), ("macro_f1", macro_f1)):
                    measures.append(
                        {"model": side, "scoring": scoring, "metric": metric, "bias": bias}
                        | _mean_and_std([function(*pair) for pair in pairs])
                    )
        return measures

    def baselines(self) -> dict[str, Any] | None:
        """What needs no model: always the label that most demonstrations have, and any label with equal chance."""
        if self._task.task.generates:
            return None
        golds = [item.example.answers[0] for item in self._task.items]
        labels = Counter(each.example.answers[0] for each in self._task.demonstrations)
        majority = max(sorted(labels), key=labels.__getitem__)
        always: list[str | None] = [majority] * len(golds)
        return {
            "majority_label": majority,
            "majority_accuracy": accuracy(golds, always),
            "majority_macro_f1": macro_f1(golds, always),
            "random_accuracy": 1 / len(self._task.labels),
            "labels_of_items": dict(sorted(Counter(golds).items())),
        }

    def predicted(self) -> list[dict[str, Any]]:
        """How often each label is predicted, over all seeds: by mean log-probability, with memory's model."""
        if self._task.task.generates:
            return []
        rows = []
        for (shots, memory_shots), seeds in sorted(self._cells.items()):
            counts = Counter(row["longmem"] for of_seed in seeds.values() for row in of_seed)
            shares = {label: counts[label] / sum(counts.values()) for label in self._task.labels}
            rows.append({"shots": shots, "memory_shots": memory_shots, "shares": shares})
        return rows

    def comparisons(self) -> list[dict[str, Any]]:
        """Memory, context and both, pair by pair: the corners of the grid that there are."""
        shots = max(each for each, _ in self._cells)
        memory = max(each for _, each in self._cells)
        corners = {
            "neither": (0, 0),
            f"{shots} in context": (shots, 0),
            f"{memory} in memory": (0, memory),
            "both": (shots, memory),
        }
        # without shots, or without memory, some corners are the same cell
        named = {cell: name for name, cell in reversed(corners.items()) if cell in self._cells}
        corners = {name: cell for name, cell in corners.items() if named.get(cell) == name}
        pairs = [(ours, theirs) for index, ours in enumerate(corners) for theirs in list(corners)[:index]]
        compared = []
        for metric in ("exact_match", "f1") if self._task.task.generates else SCORINGS:
            scores = {name: self._matrix(cell, metric) for name, cell in corners.items()}
            for ours, theirs in pairs:
                difference = asdict(paired_bootstrap(scores[ours], scores[theirs]))
                compared.append({"ours": ours, "theirs": theirs, "metric": metric, **difference})
        return compared

    def _matrix(self, cell: tuple[int, int], metric: str) -> np.ndarray:
        """Scores [seeds, items] of a cell."""
        seeds = self._cells[cell]
        if metric in ("exact_match", "f1"):
            return np.array([[row[metric] for row in seeds[seed]] for seed in sorted(seeds)])
        column = "longmem" if metric == "normalised" else "longmem_greedy"
        right = [[row[column] == row["gold"] for row in seeds[seed]] for seed in sorted(seeds)]
        return np.array(right, dtype=np.float64)


def _mean_and_std(values: list[float]) -> dict[str, float | None]:
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


def item_table(rows: list[dict[str, Any]]) -> pa.Table:
    """items.parquet."""
    return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)


def grid_table(rows: list[dict[str, Any]]) -> pa.Table:
    """grid.parquet."""
    return pa.Table.from_pylist(rows, schema=GRID_SCHEMA)
