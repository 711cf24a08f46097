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
class Voters:
    """Demonstrations of the memory with the largest weight in one vote, the heaviest first."""

    demonstrations: list[int]
    """Indices in memory."""
    weights: list[float]
    """Weights; those of all demonstrations together are 1, or less where places outside demonstrations were read."""


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
    read: list[int] | None = None
    """Demonstrations of the memory that were read whole, the nearest last."""
    votes: dict[str, list[float]] | None = None
    """Label shares of the nearest demonstrations, by similarity; where tokens are read, the weight of those places that
    hold a label, under `labels`."""
    regression: list[float] | None = None
    """Label shares by regression on the states of all demonstrations."""
    voters: dict[str, Voters] | None = None
    """Heaviest demonstrations by similarity; where tokens are read, by the weight of all their `places` and of those
    that hold their `labels`. None without memory, and where an earlier version has answered."""
    copy_share: float | None = None
    """Share of the copies in the prediction of the label; None where whole demonstrations are read."""


@dataclass(frozen=True)
class BatchRecord:
    """Items of one grid point that were answered in one request."""

    point: GridPoint
    results: list[ItemResult]
    busy_s: float
    """Compute seconds of the worker."""
    left_out: bool = False
    """True where the items are demonstrations in memory that were left out of their own retrieval, to calibrate."""


class IclJournal(AbstractJournal[BatchRecord]):
    """Journal of results by grid point and item."""

    results: dict[GridPoint, dict[int, ItemResult]]
    busy_s: dict[GridPoint, float]
    left_out: dict[GridPoint, dict[int, ItemResult]]
    """Results of left-out demonstrations, by their index in memory."""
    left_out_busy_s: dict[GridPoint, float]

    def __init__(self, path: Any) -> None:
        self.results, self.left_out = {}, {}
        self.busy_s, self.left_out_busy_s = {}, {}
        super().__init__(path)

    def _encode(self, record: BatchRecord) -> dict[str, Any]:
        values = asdict(record)
        kind = "left_out" if values.pop("left_out") else "batch"
        return {"kind": kind, "cell": values.pop("point"), **values}

    def _decode(self, values: dict[str, Any]) -> BatchRecord:
        if values["kind"] not in ("batch", "left_out"):
            raise ValueError(f"unknown kind of record {values['kind']!r}")
        results = [_item_result(result) for result in values["results"]]
        point = GridPoint(**values["cell"])
        return BatchRecord(point, results, float(values["busy_s"]), left_out=values["kind"] == "left_out")

    def _accept(self, record: BatchRecord) -> None:
        known = (self.left_out if record.left_out else self.results).setdefault(record.point, {})
        for result in record.results:
            # exactly once: an item that was answered twice has equal values
            known.setdefault(result.item, result)
        busy_s = self.left_out_busy_s if record.left_out else self.busy_s
        busy_s[record.point] = busy_s.get(record.point, 0.0) + record.busy_s


def _item_result(values: dict[str, Any]) -> ItemResult:
    scores = {side: _scores(values[side]) for side in ("longmem", "backbone")}
    voters = values.get("voters")
    found = None if voters is None else {by: Voters(**each) for by, each in voters.items()}
    return ItemResult(**{**values, **scores, "voters": found})


def _scores(values: dict[str, Any] | None) -> LabelScores | None:
    return None if values is None else LabelScores(**values)
