# SPDX-License-Identifier: Apache-2.0
"""Conversion of a grid point's items to executor requests, and of answers to results."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from longmem.runtime.requests import CompletionsRequest, ItemsRequest, Request
from longmem.scoring.batch import Item, ItemScore
from longmem.types import SegmentInfo
from pipelines.icl.records import ItemResult, LabelScores
from pipelines.icl.task_data import PreparedTask, Prompt


def request_for(task: PreparedTask, prompts: Sequence[Prompt], memory: SegmentInfo | None) -> Request:
    """Return one request for a batch of items that read the same memory."""
    if task.task.generates:
        tokens = tuple(prompt.tokens for prompt in prompts)
        return CompletionsRequest(memory, tokens, task.task.max_new_tokens, task.task.until)
    return ItemsRequest(memory, tuple(row for prompt in prompts for row in _rows(prompt)))


def results_of(task: PreparedTask, prompts: Sequence[Prompt], answer: list[Any]) -> list[ItemResult]:
    """Return the result of each item from the answer to `request_for`."""
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
