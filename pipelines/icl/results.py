# SPDX-License-Identifier: Apache-2.0
"""Figures from a journal: rows of the tables, paired differences, and what the page shows of the headline's cell."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from pipelines.icl.calibration import PARTS, Calibration
from pipelines.icl.metrics import (
    accuracy,
    answer_f1,
    distance_of_shares,
    exact_match,
    macro_f1,
    mean_interval,
    paired_bootstrap,
)
from pipelines.icl.records import IclJournal, ItemResult, LabelScores
from pipelines.icl.tables import WHOLE_SCHEMA
from pipelines.icl.task_data import GridPoint, PreparedTask

SIDES = ("longmem", "backbone")
SCORINGS = ("normalised", "greedy")
CALIBRATED = "calibrated"
"""Scoring by a mixture that is fitted to left-out demonstrations; there is none without memory."""


def _column(model: str, scoring: str) -> str:
    """Return the column of items.parquet that holds a model's predictions."""
    return model if scoring == "normalised" else f"{model}_{scoring}"


def calibrations(
    task: PreparedTask, journal: IclJournal, grid_points: Sequence[GridPoint]
) -> dict[GridPoint, Calibration]:
    """Return the calibration of each grid point whose memory has left-out demonstrations."""
    found = {}
    for point in grid_points:
        known = journal.left_out.get(point)
        memory = task.memory(point.seed, point.memory_shots) if known and point.task == task.task.name else None
        if known and memory is not None:
            # in order of the memory: a sum does not depend on which batch was answered first
            golds = [memory.labels[index] for index in sorted(known)]
            found[point] = Calibration([known[index] for index in sorted(known)], golds, task.labels)
    return found


def item_rows(
    task: PreparedTask,
    journal: IclJournal,
    grid_points: Sequence[GridPoint],
    calibrated: Mapping[GridPoint, Calibration],
) -> list[dict[str, Any]]:
    """Return the rows of items.parquet by grid point, with items in the order of the task."""
    return [
        _item_row(task, point, journal.results[point][index], calibrated.get(point))
        for point in grid_points
        if point.task == task.task.name
        for index in range(len(task.items))
    ]


def _item_row(
    task: PreparedTask, point: GridPoint, result: ItemResult, calibration: Calibration | None
) -> dict[str, Any]:
    item = task.items[result.item]
    row: dict[str, Any] = dict.fromkeys(WHOLE_SCHEMA.names)
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
    row["demonstrations_read"] = result.read
    row["regression"] = result.regression
    row |= {f"{by}_votes": shares for by, shares in (result.votes or {}).items()}
    if calibration is not None:
        row |= {f"{model}_calibrated": label for model, label in calibration.predict(result).items()}
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


@dataclass(frozen=True)
class AnsweredItem:
    """Item and what it was answered in one cell, over all seeds."""

    text: str
    """Text before the label."""
    gold: str
    longmem: list[tuple[str | None, int]]
    """Answers and the number of seeds that gave them, the most frequent first."""
    backbone: list[tuple[str | None, int]]
    """Answers of the backbone, likewise; empty for generated ones."""
    longmem_right: float
    """Share of seeds with a right answer."""
    backbone_right: float | None


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
            for measured in self._measures((shots, memory_shots), list(seeds.values())):
                rows.append(common | measured)
        return rows

    def _measures(self, cell: tuple[int, int], seeds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        if self._task.task.generates:
            return [
                {"model": "longmem", "scoring": "generated", "metric": metric, "bias": None}
                | _mean_and_std([fmean(row[metric] for row in rows) for rows in seeds])
                | self._interval(cell, metric)
                for metric in ("exact_match", "f1")
            ]
        columns = [(side, scoring, _column(side, scoring)) for side in SIDES for scoring in SCORINGS]
        if all(row["longmem_calibrated"] is not None for rows in seeds for row in rows):
            columns += [(model, CALIBRATED, _column(model, CALIBRATED)) for model in PARTS]
        measures = []
        for side, scoring, column in columns:
            pairs = [([row["gold"] for row in rows], [row[column] for row in rows]) for rows in seeds]
            bias = fmean(distance_of_shares(*pair) for pair in pairs)
            for metric, function in (("accuracy", accuracy), ("macro_f1", macro_f1)):
                measures.append(
                    {"model": side, "scoring": scoring, "metric": metric, "bias": bias}
                    | _mean_and_std([function(*pair) for pair in pairs])
                    | (self._interval(cell, scoring, side) if metric == "accuracy" else {"low": None, "high": None})
                )
        return measures

    def _interval(self, cell: tuple[int, int], metric: str, model: str = "longmem") -> dict[str, float | None]:
        low, high = mean_interval(self._matrix(cell, metric, model))
        return {"low": low, "high": high}

    @property
    def _headline(self) -> tuple[tuple[int, int], str]:
        """Return the cell that a headline names, fewest in context and most in memory, and its scoring."""
        cell = min(shots for shots, _ in self._rows), max(memory_shots for _, memory_shots in self._rows)
        if self._task.task.generates:
            return cell, "exact_match"
        calibrated = all(row["longmem_calibrated"] is not None for rows in self._rows[cell].values() for row in rows)
        return cell, CALIBRATED if calibrated else "normalised"

    def finding(self) -> dict[str, Any] | None:
        """Return the result with the most in memory against that of the same model without, in the same context and by
        the same scoring.

        Nothing is calibrated without memory: `against` is then the backbone, with a fit of its own, as where the grid
        has no cell without memory. None without such a pair.
        """
        cell, scoring = self._headline
        without = (cell[0], 0)
        if not cell[1] or (self._task.task.generates and without not in self._rows):
            return None
        is_same = scoring != CALIBRATED and without in self._rows
        ours = self._matrix(cell, scoring)
        theirs = self._matrix(without, scoring) if is_same else self._matrix(cell, scoring, "backbone")
        return {
            "against": "longmem" if is_same else "backbone",
            "shots": cell[0],
            "memory_shots": cell[1],
            "scoring": scoring,
            "ours": float(ours.mean()),
            "theirs": float(theirs.mean()),
            "difference": asdict(paired_bootstrap(ours, theirs)),
        }

    def confusion(self) -> dict[str, Any] | None:
        """Return, for the cell of the headline, how often each right label (rows) got each answer (columns) over all
        seeds. The last column is no label. None for generated answers."""
        if self._task.task.generates:
            return None
        (shots, memory_shots), scoring = self._headline
        labels = self._task.labels
        rows = [row for seed_rows in self._rows[shots, memory_shots].values() for row in seed_rows]
        found: dict[str, Any] = {"shots": shots, "memory_shots": memory_shots, "scoring": scoring}
        for side in SIDES:
            counts = Counter((row["gold"], row[_column(side, scoring)]) for row in rows)
            found[side] = [[counts[gold, answer] for answer in (*labels, None)] for gold in labels]
        return found

    def answered(self) -> list[AnsweredItem]:
        """Return the items with their answers in the cell of the headline, over all seeds."""
        cell, scoring = self._headline
        generates = self._task.task.generates
        ours, theirs = ("answer", None) if generates else (_column(side, scoring) for side in SIDES)
        right = self._matrix(cell, scoring).mean(axis=0)
        right_alone = None if generates else self._matrix(cell, scoring, "backbone").mean(axis=0)
        return [
            AnsweredItem(
                text=item.example.prompt.strip(),
                gold=rows[0]["gold"],
                longmem=Counter(row[ours] for row in rows).most_common(),
                backbone=[] if theirs is None else Counter(row[theirs] for row in rows).most_common(),
                longmem_right=float(right[number]),
                backbone_right=None if right_alone is None else float(right_alone[number]),
            )
            for number, (item, *rows) in enumerate(zip(self._task.items, *self._rows[cell].values(), strict=True))
        ]

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
        return compared + self._calibrated_comparisons(memory)

    def _calibrated_comparisons(self, memory: int) -> list[dict[str, Any]]:
        """Return calibrated results with the largest memory against every number of shots in context alone.

        Those are chosen by mean log-probability: without memory, nothing is left out to calibrate with. Then against
        each of the other calibrated models.
        """
        compared = []
        for shots in sorted({in_context for in_context, in_memory in self._rows if in_memory == memory}):
            rows = [row for seed_rows in self._rows[shots, memory].values() for row in seed_rows]
            if any(row["longmem_calibrated"] is None for row in rows):
                continue
            ours = f"{memory} in memory" if shots == 0 else f"{shots} in context, {memory} in memory"
            scores = self._matrix((shots, memory), CALIBRATED)
            others = {
                f"{in_context} in context": self._matrix((in_context, 0), "normalised")
                for in_context, in_memory in sorted(self._rows)
                if in_memory == 0
            }
            others |= {
                f"{model.replace('_', ' ')} alone": self._matrix((shots, memory), CALIBRATED, model)
                for model in PARTS
                if model != "longmem"
            }
            for theirs, other in others.items():
                difference = asdict(paired_bootstrap(scores, other))
                compared.append({"ours": ours, "theirs": theirs, "metric": CALIBRATED, **difference})
        return compared

    def _matrix(self, corner: tuple[int, int], metric: str, model: str = "longmem") -> np.ndarray:
        """Return the scores [seeds, items] of one corner (shots in context, shots in memory)."""
        seeds = self._rows[corner]
        if metric in ("exact_match", "f1"):
            return np.array([[row[metric] for row in seeds[seed]] for seed in sorted(seeds)])
        column = _column(model, metric)
        right = [[row[column] == row["gold"] for row in seeds[seed]] for seed in sorted(seeds)]
        return np.array(right, dtype=np.float64)


def _mean_and_std(values: list[float]) -> dict[str, float | None]:
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}
