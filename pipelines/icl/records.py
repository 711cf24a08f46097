# SPDX-License-Identifier: Apache-2.0
"""Records of an in-context-learning job: the lines of its journal."""

from dataclasses import asdict, dataclass
from typing import Any

from pipelines.icl.task_data import GridPoint
from pipelines.job.journal import AbstractJournal


@dataclass(frozen=True)
class LabelScores:
    """Scores of an item's labels by one model, in the order of the task's labels."""

    logprobs: list[float]
    """Natural log-probability of each label: sum over its tokens."""
    first_choice: int
    """Most probable token of the whole vocabulary at the start of the label."""


@dataclass(frozen=True)
class ItemResult:
    """Result of one item at one grid point: scores of its labels, or a generated answer.

    It is a function of data, model and settings.
    """

    item: int
    """Index among the task's items."""
    shots: int
    """Demonstrations that were in context."""
    num_tokens: int
    """Tokens that were read for the item, over all rows of its labels."""
    longmem: LabelScores | None = None
    backbone: LabelScores | None = None
    answer: str | None = None


@dataclass(frozen=True)
class BatchRecord:
    """Items of one grid point that were answered in one request."""

    point: GridPoint
    results: list[ItemResult]
    busy_s: float
    """Compute seconds of the worker."""


class IclJournal(AbstractJournal[BatchRecord]):
    """Journal of results by grid point and item."""

    results: dict[GridPoint, dict[int, ItemResult]]
    busy_s: dict[GridPoint, float]

    def __init__(self, path: Any) -> None:
        self.results = {}
        self.busy_s = {}
        super().__init__(path)

    def _encode(self, record: BatchRecord) -> dict[str, Any]:
        values = asdict(record)
        return {"kind": "batch", "cell": values.pop("point"), **values}

    def _decode(self, values: dict[str, Any]) -> BatchRecord:
        if values["kind"] != "batch":
            raise ValueError(f"unknown kind of record {values['kind']!r}")
        results = [
            ItemResult(**{**result, "longmem": _scores(result["longmem"]), "backbone": _scores(result["backbone"])})
            for result in values["results"]
        ]
        return BatchRecord(GridPoint(**values["cell"]), results, float(values["busy_s"]))

    def _accept(self, record: BatchRecord) -> None:
        known = self.results.setdefault(record.point, {})
        for result in record.results:
            # exactly once: an item that was answered twice has equal values
            known.setdefault(result.item, result)
        self.busy_s[record.point] = self.busy_s.get(record.point, 0.0) + record.busy_s


def _scores(values: dict[str, Any] | None) -> LabelScores | None:
    return None if values is None else LabelScores(**values)
