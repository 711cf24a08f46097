"""What a job remembers of its items: the lines of its journal."""

from dataclasses import asdict, dataclass
from typing import Any

from pipelines.icl.task_data import GridPoint
from pipelines.job.journal import AbstractJournal


@dataclass(frozen=True)
class LabelScores:
    """One model's view of an item's labels, in the order of the task's. Natural logarithms."""

    logprobs: list[float]
    """Of all tokens of each label together."""
    first_choice: int
    """The most probable token where the label begins, of the whole vocabulary."""


@dataclass(frozen=True)
class ItemResult:
    """One item in one cell: scores of its labels, or a generated answer. A function of data, model and settings."""

    item: int
    """Index among the task's items."""
    shots: int
    """Demonstrations that stood in context."""
    num_tokens: int
    """Tokens that were read for it, over all rows that its labels needed."""
    longmem: LabelScores | None = None
    backbone: LabelScores | None = None
    answer: str | None = None


@dataclass(frozen=True)
class BatchRecord:
    """Items of one cell that were answered together."""

    cell: GridPoint
    results: list[ItemResult]
    busy_s: float
    """Seconds that a worker computed."""


class IclJournal(AbstractJournal[BatchRecord]):
    """Results by cell and item."""

    results: dict[GridPoint, dict[int, ItemResult]]
    busy_s: dict[GridPoint, float]

    def __init__(self, path: Any) -> None:
        self.results = {}
        self.busy_s = {}
        super().__init__(path)

    def _encode(self, record: BatchRecord) -> dict[str, Any]:
        return {"kind": "batch", **asdict(record)}

    def _decode(self, values: dict[str, Any]) -> BatchRecord:
        if values["kind"] != "batch":
            raise ValueError(f"unknown kind of record {values['kind']!r}")
        results = [
            ItemResult(**{**each, "longmem": _scores(each["longmem"]), "backbone": _scores(each["backbone"])})
            for each in values["results"]
        ]
        return BatchRecord(GridPoint(**values["cell"]), results, float(values["busy_s"]))

    def _accept(self, record: BatchRecord) -> None:
        known = self.results.setdefault(record.cell, {})
        for result in record.results:
            # exactly once, as an item that was answered twice has the same values
            known.setdefault(result.item, result)
        self.busy_s[record.cell] = self.busy_s.get(record.cell, 0.0) + record.busy_s


def _scores(values: dict[str, Any] | None) -> LabelScores | None:
    return None if values is None else LabelScores(**values)
