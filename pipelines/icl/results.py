# SPDX-License-Identifier: Apache-2.0
"""Tables and comparisons from a journal: rows per item and grid point, rows per grid point, paired differences."""

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
"""Columns of items.parquet.

Labels are predicted by mean log-probability of a label's tokens (`longmem`), and by greedy first token
(`longmem_greedy`; null if the most probable token begins no label). Log-probabilities are in the order of the task's
labels. The last three columns describe generated answers.
"""

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
"""Columns of grid.parquet. `std` is the sample standard deviation over seeds (null for one seed), `bias` the distance
between the distributions of predictions and golds."""

SIDES = ("longmem", "backbone")
SCORINGS = ("normalised", "greedy")


def item_rows(task: PreparedTask, journal: IclJournal, grid_points: Sequence[GridPoint]) -> list[dict[str, Any]]:
    """Return the rows of items.parquet by grid point, with items in the order of the task."""
    return [
        _item_row(task, point, journal.results[point][index])
        for point in grid_points
        if point.task == task.task.name
        for index in range(len(task.items))
    ]


def _item_row(task: PreparedTask, point: GridPoint, result: ItemResult) -> dict[str, Any]:
    item = task.items[result.item]
    row: dict[str, Any] = dict.fromkeys(ITEM_SCHEMA.names)
    row |= asdict(point) | {
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
    """Return the label with the highest mean log-probability of its tokens, and the greedy label.

    The greedy label begins with the most probable token; of several such labels it is the one that scores highest.
    """
    targets = task.items[index].targets
    means = {
        label: logprob / len(target) for (label, target), logprob in zip(targets.items(), scores.logprobs, strict=True)
    }
    greedy = [label for label, target in targets.items() if target[0] == scores.first_choice]
    return max(means, key=means.__getitem__), max(greedy, key=means.__getitem__, default=None)


class TaskResults:
    """Aggregated results of one task."""

    def __init__(self, task: PreparedTask, rows: list[dict[str, Any]]) -> None:
        self._task = task
        self._rows: dict[tuple[int, int], dict[int, list[dict[str, Any]]]] = {}
        for row in rows:
            seeds = self._rows.setdefault((row["shots"], row["memory_shots"]), {})
            seeds.setdefault(row["seed"], []).append(row)

    def grid(self) -> list[dict[str, Any]]:
        """Return the rows of grid.parquet."""
        rows = []
        for (shots, memory_shots), seeds in sorted(self._rows.items()):
            every = [row for seed_rows in seeds.values() for row in seed_rows]
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
        """Return the baselines without a model: the most frequent label of the demonstrations, and a uniform guess."""
        if self._task.task.generates:
            return None
        golds = [item.example.answers[0] for item in self._task.items]
        labels = Counter(demonstration.example.answers[0] for demonstration in self._task.demonstrations)
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
        """Return the share of each predicted label over all seeds, by mean log-probability of LongMem."""
        if self._task.task.generates:
            return []
        rows = []
        for (shots, memory_shots), seeds in sorted(self._rows.items()):
            counts = Counter(row["longmem"] for seed_rows in seeds.values() for row in seed_rows)
            shares = {label: counts[label] / sum(counts.values()) for label in self._task.labels}
            rows.append({"shots": shots, "memory_shots": memory_shots, "shares": shares})
        return rows

    def comparisons(self) -> list[dict[str, Any]]:
        """Return paired comparisons of the grid's corners: neither, context, memory and both."""
        shots = max(in_context for in_context, _ in self._rows)
        memory = max(in_memory for _, in_memory in self._rows)
        corners = {
            "neither": (0, 0),
            f"{shots} in context": (shots, 0),
            f"{memory} in memory": (0, memory),
            "both": (shots, memory),
        }
        # without shots, or without memory, some corners are the same point
        named = {corner: name for name, corner in reversed(corners.items()) if corner in self._rows}
        corners = {name: corner for name, corner in corners.items() if named.get(corner) == name}
        pairs = [(ours, theirs) for index, ours in enumerate(corners) for theirs in list(corners)[:index]]
        compared = []
        for metric in ("exact_match", "f1") if self._task.task.generates else SCORINGS:
            scores = {name: self._matrix(corner, metric) for name, corner in corners.items()}
            for ours, theirs in pairs:
                difference = asdict(paired_bootstrap(scores[ours], scores[theirs]))
                compared.append({"ours": ours, "theirs": theirs, "metric": metric, **difference})
        return compared

    def _matrix(self, corner: tuple[int, int], metric: str) -> np.ndarray:
        """Return the scores [seeds, items] of one corner (shots in context, shots in memory)."""
        seeds = self._rows[corner]
        if metric in ("exact_match", "f1"):
            return np.array([[row[metric] for row in seeds[seed]] for seed in sorted(seeds)])
        column = "longmem" if metric == "normalised" else "longmem_greedy"
        right = [[row[column] == row["gold"] for row in seeds[seed]] for seed in sorted(seeds)]
        return np.array(right, dtype=np.float64)


def _mean_and_std(values: list[float]) -> dict[str, float | None]:
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


def item_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return the content of items.parquet."""
    return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)


def grid_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return the content of grid.parquet."""
    return pa.Table.from_pylist(rows, schema=GRID_SCHEMA)
