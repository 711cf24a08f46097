# SPDX-License-Identifier: Apache-2.0
"""Tables of what items read: demonstrations.parquet, with the rows of items.parquet, and texts: examples.parquet."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.icl.mixture import VOTE_POWER
from pipelines.icl.records import IclJournal, ItemResult
from pipelines.icl.requests import LABELS, PLACES
from pipelines.icl.task_data import EncodedDemonstrations, GridPoint, PreparedTask

KEY = [
    ("task", pa.string()),
    ("seed", pa.int64()),
    ("shots", pa.int64()),
    ("memory_shots", pa.int64()),
    ("item", pa.string()),
]
NAMED = [("index", pa.int32()), ("example", pa.int32()), ("label", pa.string())]

TAKEN_SCHEMA = pa.schema(
    [
        *KEY,
        ("copy_share", pa.float64()),
        ("label_votes", pa.list_(pa.float64())),
        ("demonstrations", pa.list_(pa.struct([*NAMED, (PLACES, pa.float64()), (LABELS, pa.float64())]))),
    ]
)
"""Columns of demonstrations.parquet where tokens were read. Its rows are those of items.parquet.

`demonstrations` has the heaviest ones: `index` in memory, number of the `example` in examples.parquet, its label, and
the weight of all its places that were read (`places`) and of those that hold its label (`labels`); null where it is not
among the heaviest. `label_votes` sums the latter over all demonstrations, in the order of the task's labels.
`copy_share` is the share of the copies in the prediction of the label.
"""

NEAREST_SCHEMA = pa.schema(
    [
        *KEY,
        (
            "demonstrations",
            pa.list_(pa.struct([*NAMED, ("rank", pa.int32()), *((by, pa.float64()) for by in VOTE_POWER)])),
        ),
    ]
)
"""Columns of demonstrations.parquet where whole demonstrations were read: `rank` is 1 for the nearest of those read,
and null for one that only voted; the others are its weights in each vote."""

EXAMPLE_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("kind", pa.string()),
        ("number", pa.int32()),
        ("example", pa.string()),
        ("label", pa.string()),
        ("passage", pa.string()),
        ("start", pa.int32()),
        ("length", pa.int32()),
    ]
)
"""Columns of examples.parquet: every item, in the order of items.parquet, and every demonstration that a table names.

`kind` is `item` or `demonstration`. `passage` is the text from the template with its target, whose characters are
`start` and `length`; a model reads an item only up to there. `example` is the name, file and line.
"""

GROUP_ROWS = 1024
"""Rows of a row group of demonstrations.parquet, as many as are read at once: about 300 kB."""


def tables_of_readings(
    tasks: Mapping[str, PreparedTask],
    journal: IclJournal,
    grid_points: Sequence[GridPoint],
    whole: bool,
    tell: Callable[[str], None],
) -> dict[str, pa.Table]:
    """Return the tables by name; none where an earlier version of longmem, which kept no readings, has answered."""
    points = [point for name in tasks for point in grid_points if point.task == name]
    rows = []
    for point in points:
        task, results = tasks[point.task], journal.results[point]
        if point.memory_shots and not task.task.generates and any(each.voters is None for each in results.values()):
            tell("no demonstrations are written: an earlier version of longmem, which kept none, has answered items")
            return {}
        rows += [_row(task, point, results[index]) for index in range(len(task.items))]
    named: dict[str, set[int]] = {name: set() for name in tasks}
    for row in rows:
        named[row["task"]].update(each["example"] for each in row["demonstrations"])
    for point in points:
        named[point.task].update(in_context(tasks[point.task], point.seed, point.shots))
    examples = [each for name, task in tasks.items() for each in _examples(task, sorted(named[name]))]
    return {
        "demonstrations": pa.Table.from_pylist(rows, schema=NEAREST_SCHEMA if whole else TAKEN_SCHEMA),
        "examples": pa.Table.from_pylist(examples, schema=EXAMPLE_SCHEMA),
    }


def in_context(task: PreparedTask, seed: int, shots: int) -> list[int]:
    """Return the numbers of the demonstrations in context of a seed, in order; an item has the last ones that fit."""
    return task.order(seed)[:shots]


def _row(task: PreparedTask, point: GridPoint, result: ItemResult) -> dict[str, Any]:
    voters = result.voters or {}
    read = (result.read or [])[::-1]
    ranks = {index: rank for rank, index in enumerate(read, start=1)}
    weights = {by: dict(zip(each.demonstrations, each.weights, strict=True)) for by, each in voters.items()}
    # those read first, the nearest before others; then the rest by their weight in all votes
    others: dict[int, float] = {}
    for each in weights.values():
        for index, weight in each.items():
            others[index] = others.get(index, 0.0) + weight
    order = [*read, *sorted(others.keys() - ranks.keys(), key=lambda index: (-others[index], index))]
    numbers = task.numbers_in_memory(point.seed, point.memory_shots)
    return {
        "task": point.task,
        "seed": point.seed,
        "shots": point.shots,
        "memory_shots": point.memory_shots,
        "item": task.items[result.item].example.name,
        "copy_share": result.copy_share,
        "label_votes": (result.votes or {}).get(LABELS),
        "demonstrations": [
            {
                "index": index,
                "example": numbers[index],
                "label": task.demonstrations[numbers[index]].example.answers[0],
                "rank": ranks.get(index),
                **{by: each.get(index) for by, each in weights.items()},
            }
            for index in order
        ],
    }


def _examples(task: PreparedTask, demonstrations: Iterable[int]) -> Iterator[dict[str, Any]]:
    for number, item in enumerate(task.items):
        yield _example(task, "item", number, item)
    for number in demonstrations:
        yield _example(task, "demonstration", number, task.demonstrations[number])


def _example(task: PreparedTask, kind: str, number: int, encoded: EncodedDemonstrations) -> dict[str, Any]:
    example, target = encoded.example, task.task.target_text(encoded.example)
    prompt = example.prompt.lstrip(" ")
    return {
        "task": task.task.name,
        "kind": kind,
        "number": number,
        "example": example.name,
        "label": example.answers[0],
        "passage": f"{prompt} {target}{example.after}",
        "start": len(prompt) + 1,
        "length": len(target),
    }
