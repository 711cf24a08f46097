# SPDX-License-Identifier: Apache-2.0
"""Output folder of a finished in-context-learning job.

items.parquet            answers, whole in memory: a row for each item at each point of the grid
demonstrations.parquet   what each item read, by row groups; the same rows
examples.parquet         texts, whole in memory
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longmem.errors import ConfigError
from pipelines.view.tables import GroupedTable, read_summary, written_anew

KEY = ("task", "seed", "shots", "memory_shots")
ANSWERS = ("gold", "longmem", "longmem_greedy", "backbone", "backbone_greedy", "answer", "exact_match", "f1")
DETAILS = (
    "longmem_logprobs",
    "backbone_logprobs",
    "idf_votes",
    "values_votes",
    "target_votes",
    "regression",
    "shots_in_context",
)
READ = ("copy_share", "label_votes", "demonstrations")

Point = tuple[str, int, int, int]
"""Task, seed, demonstrations in context, demonstrations in memory."""


@dataclass(frozen=True)
class ShownExample:
    """Text of an item or a demonstration."""

    name: str
    label: str
    passage: str
    """Text from the template, with its target."""
    start: int
    """Characters before the target."""
    length: int
    """Characters of the target."""


class IclFolder:
    """Tables of one finished job. Thread-safe. Raises ConfigError for a folder without them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary = read_summary(path)
        for name in ("items", "demonstrations", "examples"):
            if not (path / f"{name}.parquet").is_file():
                raise ConfigError(
                    f"{path} holds no {name}.parquet: an earlier version of longmem ran the job, or the table was "
                    f"removed; run `longmem icl` again with another --out, or {written_anew(path)}"
                )
        self._lock = RLock()
        try:
            held = pq.read_schema(path / "items.parquet").names
            self.scored = [name for name in held if name in ANSWERS or name.endswith("_calibrated")]
            """Columns of items.parquet with right labels and answers."""
            self._items = pq.read_table(path / "items.parquet", columns=[*KEY, *self.scored])
            self._details = GroupedTable(path / "items.parquet", DETAILS)
            self._read = GroupedTable(path / "demonstrations.parquet", READ)
            self._examples = pq.read_table(path / "examples.parquet")
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ConfigError(f"cannot read the tables in {path}: {error}; {written_anew(path)}") from error
        if self._read.num_rows != len(self._items):
            raise ConfigError(f"the tables in {path} are not of one job; {written_anew(path)}")
        self.points = self._find_points()
        self._rows_of = self._find_examples()

    def _find_points(self) -> dict[Point, range]:
        """Return the rows of each point of the grid."""
        columns = [self._items[name].combine_chunks() for name in KEY]
        numbers = [columns[0].dictionary_encode().indices.to_numpy(), *(each.to_numpy() for each in columns[1:])]
        changes = np.zeros(len(self._items), dtype=bool)
        changes[:1] = True
        for each in numbers:
            changes[1:] |= each[1:] != each[:-1]
        firsts = [*np.flatnonzero(changes).tolist(), len(self._items)]
        return {
            tuple(column[first].as_py() for column in columns): range(first, end) for first, end in pairwise(firsts)
        }

    def _find_examples(self) -> dict[tuple[str, str, int], int]:
        names = (self._examples[name].to_pylist() for name in ("task", "kind", "number"))
        return {key: row for row, key in enumerate(zip(*names, strict=True))}

    def answers(self, point: Point) -> list[dict[str, Any]]:
        """Return the right label and all answers of each item of a point."""
        rows = self.points[point]
        found: list[dict[str, Any]] = self._items.slice(rows.start, len(rows)).select(self.scored).to_pylist()
        return found

    def reading(self, point: Point, item: int) -> dict[str, Any]:
        """Return columns `DETAILS` and `READ` of one item, as far as the job has them."""
        row = self.points[point][item]
        with self._lock:
            [details] = self._details.rows(row, row + 1).to_pylist()
            [read] = self._read.rows(row, row + 1).to_pylist()
        return {**details, **read}

    def example(self, task: str, kind: str, number: int) -> ShownExample:
        """Return an item or a demonstration."""
        row = self._rows_of[task, kind, number]
        name, label, passage, start, length = (
            self._examples[column][row].as_py() for column in ("example", "label", "passage", "start", "length")
        )
        return ShownExample(name, label, passage, start, length)
