# SPDX-License-Identifier: Apache-2.0
"""Conversion of a grid point's items to executor requests, and of answers to results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longmem.config import DemonstrationChoice
from longmem.runtime.requests import CompletionsRequest, ItemsRequest, LabelsRequest, Request
from longmem.scoring.batch import Item, ItemScore, TakenPlaces
from longmem.scoring.labels import LabelledScore, LabelPrompt
from longmem.sidenet.demonstration_choice import DemonstrationPlan, Nearest
from longmem.types import SegmentInfo
from pipelines.icl.mixture import vote, vote_weights
from pipelines.icl.records import ItemResult, LabelScores, Voters
from pipelines.icl.task_data import Memory, PreparedTask, Prompt

NUM_VOTERS = 16
"""Heaviest demonstrations that the result of an item names in each vote: as many as it reads whole by default."""
WEIGHT_DIGITS = 6
"""Decimals of weights in a journal: all that a person can use, in a third of the characters."""
PLACES, LABELS = "places", "labels"
"""Names of the votes where tokens are read: by all places of a demonstration, and by those that hold its label."""


@dataclass(frozen=True)
class WholeReading:
    """Options of reading whole demonstrations, and of calibrating what their labels say."""

    num_read: int
    choice: DemonstrationChoice
    num_left_out: int
    """Demonstrations of each memory that are left out of their own retrieval, to calibrate."""
    pack_tokens: int
    """Tokens of demonstrations that are encoded together."""


def request_for(
    task: PreparedTask,
    prompts: Sequence[Prompt],
    memory: SegmentInfo | None,
    whole: WholeReading | None = None,
    demonstrations: Memory | None = None,
    left_out: bool = False,
) -> Request:
    """Return one request for a batch of items that read the same memory, its `demonstrations` as `whole` says.

    With `left_out`, the items are demonstrations of the memory, by their index.
    """
    if whole is not None:
        plan = None
        if demonstrations is not None:
            labels = np.array([task.labels.index(label) for label in demonstrations.labels], dtype=np.int64)
            plan = DemonstrationPlan(
                demonstrations.units, whole.choice, whole.num_read, labels=labels, num_labels=len(task.labels)
            )
        return LabelsRequest(memory, tuple(label_prompt(prompt, left_out) for prompt in prompts), plan)
    if task.task.generates:
        tokens = tuple(prompt.tokens for prompt in prompts)
        return CompletionsRequest(memory, tokens, task.task.max_new_tokens, task.task.until)
    return ItemsRequest(memory, tuple(row for prompt in prompts for row in _rows(prompt)), keep_places=True)


def results_of(
    task: PreparedTask,
    prompts: Sequence[Prompt],
    answer: list[Any],
    demonstrations: Memory | None = None,
    left_out: bool = False,
) -> list[ItemResult]:
    """Return the result of each item from the answer to `request_for`; `demonstrations` are those of its memory. No
    voters are kept of items that were left out to calibrate."""
    if answer and isinstance(answer[0], LabelledScore):
        return [_whole_result(task, *each, demonstrations, left_out) for each in zip(prompts, answer, strict=True)]
    if task.task.generates:
        return [
            ItemResult(prompt.index, prompt.shots, len(prompt.tokens), answer=text.strip())
            for prompt, text in zip(prompts, answer, strict=True)
        ]
    scores: Iterator[ItemScore] = iter(answer)
    results = []
    for prompt in prompts:
        rows = [next(scores) for _ in _rows(prompt)]
        longmem, backbone = (_label_scores(prompt, rows, side) for side in ("longmem", "backbone"))
        num_tokens = sum(row.num_read for row in _rows(prompt))
        # all rows of an item read the same places where its label begins
        read = {} if demonstrations is None else taken_demonstrations(task, rows[0].taken, demonstrations)
        results.append(ItemResult(prompt.index, prompt.shots, num_tokens, longmem, backbone, **read))
    return results


def label_prompt(prompt: Prompt, left_out: bool = False) -> LabelPrompt:
    """Return the item without its target, and its labels; with `left_out` it is that demonstration of the memory."""
    context, own = np.split(prompt.tokens, [len(prompt.tokens) - prompt.num_own])
    name = f"{'demonstration ' if left_out else ''}{prompt.index}"
    return LabelPrompt(name, context, own, tuple(prompt.targets.values()), prompt.index if left_out else None)


def _whole_result(
    task: PreparedTask, prompt: Prompt, score: LabelledScore, demonstrations: Memory | None, left_out: bool
) -> ItemResult:
    longmem, backbone = (
        LabelScores(each.logprobs.astype(np.float64).tolist(), each.first_choice)
        for each in (score.longmem, score.backbone)
    )
    votes, voters = None, None
    if demonstrations is not None:
        labels = [task.labels.index(label) for label in demonstrations.labels]
        votes = {
            str(by): vote(
                [labels[index] for index in found.index], found.similarity.tolist(), len(task.labels), by
            ).tolist()
            for by, found in score.nearest.items()
        }
        voters = {str(by): _nearest_voters(found, by) for by, found in score.nearest.items() if not left_out}
    # tokens of the context are read once for all items
    return ItemResult(
        prompt.index,
        prompt.shots,
        prompt.num_own,
        longmem,
        backbone,
        read=score.read.tolist() or None,
        votes=votes,
        regression=None if score.regression is None else score.regression.tolist(),
        voters=voters or None,
    )


def _nearest_voters(found: Nearest, by: str) -> Voters:
    weights = vote_weights(found.similarity.tolist(), by)
    total = weights.sum()
    return _heaviest(found.index, weights / total if total > 0 else weights)


def _heaviest(demonstrations: np.ndarray, weights: np.ndarray) -> Voters:
    """Return the `NUM_VOTERS` demonstrations with the largest weight above 0; of equal ones the first."""
    order = np.argsort(-weights, kind="stable")[:NUM_VOTERS]
    order = order[weights[order] > 0]
    return Voters(demonstrations[order].tolist(), weights[order].round(WEIGHT_DIGITS).tolist())


def taken_demonstrations(task: PreparedTask, taken: TakenPlaces | None, memory: Memory) -> dict[str, Any]:
    """Return `votes`, `voters` and `copy_share` of an item's result, from the places that its label was taken from.

    A demonstration votes for its label with the weight of those of its places that hold the first token of the label.
    """
    units, found = memory.units, np.zeros(0, dtype=np.int64)
    if taken is None:
        taken = TakenPlaces(found, np.zeros(0, dtype=np.float32), 0.0)
    owner = np.searchsorted(units.starts, taken.positions, side="right") - 1
    # a start token, and the end of the memory, belong to no demonstration
    inside = (owner >= 0) & (taken.positions < (units.starts + units.lengths)[owner])
    owner, positions, weights = owner[inside], taken.positions[inside], taken.weights[inside].astype(np.float64)
    at_label = weights * (positions == (units.starts + units.prompts)[owner])
    count = memory.num_demonstrations
    by_place, by_label = (np.bincount(owner, each, count) for each in (weights, at_label))
    labels = np.array([task.labels.index(label) for label in memory.labels])
    everyone = np.arange(count)
    return {
        "votes": {LABELS: np.bincount(labels, by_label, len(task.labels)).round(WEIGHT_DIGITS).tolist()},
        "voters": {PLACES: _heaviest(everyone, by_place), LABELS: _heaviest(everyone, by_label)},
        "copy_share": round(taken.copy_share, WEIGHT_DIGITS),
    }


def _rows(prompt: Prompt) -> list[Item]:
    """Return the rows of an item: all labels of one token share the first row; each longer label needs its own."""
    firsts = np.array([target[0] for target in prompt.targets.values()], dtype=np.int32)
    longer = [label for label, target in prompt.targets.items() if len(target) > 1]
    rows = []
    for label in longer or list(prompt.targets)[:1]:
        tokens = np.concatenate([prompt.tokens, prompt.targets[label]])
        # every row scores all first tokens, so that they come from a single forward
        rows.append(Item(f"{prompt.index} {label}", tokens, len(prompt.tokens), firsts))
    return rows


def _label_scores(prompt: Prompt, rows: list[ItemScore], side: str) -> LabelScores:
    scores = [getattr(row, side) for row in rows]
    longer_labels = [label for label, target in prompt.targets.items() if len(target) > 1]
    longer = {label: index for index, label in enumerate(longer_labels)}
    logprobs = [
        scores[longer[label]].total if label in longer else float(scores[0].alternatives[index])
        for index, label in enumerate(prompt.targets)
    ]
    return LabelScores(logprobs, scores[0].first_choice)
