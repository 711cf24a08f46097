"""Items of a cell as requests to the executor, and answers as results."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from longmem.runtime.requests import CompletionsRequest, ItemsRequest, Request
from longmem.scoring.batch import Item, ItemScore
from longmem.types import SegmentInfo
from pipelines.icl.records import ItemResult, LabelScores
from pipelines.icl.task_data import PreparedTask, Prompt


def request_for(task: PreparedTask, prompts: Sequence[Prompt], memory: SegmentInfo | None) -> Request:
    """One request for a batch of items that read the same memory."""
    if task.task.generates:
        tokens = tuple(prompt.tokens for prompt in prompts)
        return CompletionsRequest(memory, tokens, task.task.max_new_tokens, task.task.until)
    return ItemsRequest(memory, tuple(row for prompt in prompts for row in _rows(prompt)))


def results_of(task: PreparedTask, prompts: Sequence[Prompt], answer: list[Any]) -> list[ItemResult]:
    """What the answer to `request_for` says of each item."""
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
        results.append(ItemResult(prompt.index, prompt.shots, num_tokens, longmem, backbone))
    return results


def _rows(prompt: Prompt) -> list[Item]:
    """Labels of one token all ride on the first row; each longer label needs one of its own."""
    firsts = np.array([target[0] for target in prompt.targets.values()], dtype=np.int32)
    longer = [label for label, target in prompt.targets.items() if len(target) > 1]
    rows = []
    for label in longer or list(prompt.targets)[:1]:
        tokens = np.concatenate([prompt.tokens, prompt.targets[label]])
        # every row has the first tokens, so that all of them are of one forward
        rows.append(Item(f"{prompt.index} {label}", tokens, len(prompt.tokens), firsts))
    return rows


def _label_scores(prompt: Prompt, rows: list[ItemScore], side: str) -> LabelScores:
    scores = [getattr(row, side) for row in rows]
    longer = {label: index for index, label in enumerate(each for each, t in prompt.targets.items() if len(t) > 1)}
    logprobs = [
        scores[longer[label]].total if label in longer else float(scores[0].alternatives[index])
        for index, label in enumerate(prompt.targets)
    ]
    return LabelScores(logprobs, scores[0].first_choice)
