# SPDX-License-Identifier: Apache-2.0
"""Whole demonstrations read from memory, against the same demonstrations encoded anew for every item.

Both have the same demonstrations in the same order in front of the item. From memory, their keys and values were
computed once, each behind others of its segment. In context, they are run with each item, as retrieval-augmented
prompts are. Both have one run of the backbone for an item, and the start token run once for a request. They take turns,
request by request. Which demonstrations are nearest is found by the first, within its seconds; the other is given them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from longmem.config import DemonstrationChoice
from longmem.dtypes import to_array
from longmem.errors import ConfigError
from longmem.memory.context import LocalMemory
from longmem.model.longmem import LongMem
from longmem.scoring.labels import CandidateScores, read_labels, score_labels
from longmem.sidenet.demonstration_choice import DemonstrationPlan
from longmem.wording import signed
from pipelines.icl.metrics import paired_bootstrap
from pipelines.icl.requests import label_prompt
from pipelines.icl.task_data import GridPoint, PreparedTask, Prompt

MEMORY, CONTEXT = "read from memory", "encoded anew in context"
ITEMS_AT_ONCE = 10
"""Items of a request."""


@dataclass
class Case:
    """One way to show demonstrations."""

    right: list[bool]
    """True for each item that was answered right, by the highest mean log-probability of a label's tokens."""
    wall_s: float = 0.0
    cpu_s: float = 0.0


def run(
    model: LongMem, task: PreparedTask, num_in_memory: int, num_read: int, choice: DemonstrationChoice, seed: int
) -> dict[str, Any]:
    """Return figures of both cases. Raises ConfigError for a task with generated answers or too few demonstrations."""
    if task.task.generates:
        raise ConfigError(f"task {task.task.name} has generated answers; give a task with labels")
    task.check(num_in_memory)
    memory = task.memory(seed, num_in_memory)
    if memory is None:
        raise ConfigError("expected at least one demonstration in memory")
    last = memory.segments[-1]
    if (needed := last.start_token + last.num_tokens) > model.config.memory_tokens:
        raise ConfigError(f"the demonstrations have {needed} tokens; expected memory_tokens of at least as many")
    store, encode_s = LocalMemory(model), perf_counter()
    for segment in memory.segments:
        store.accept(model.encode(segment).block)
    encode_s = perf_counter() - encode_s
    view = store.view_before(needed)
    plan = DemonstrationPlan(memory.units, choice, num_read)
    assert view is not None, "a memory of at least one segment"
    text = to_array(view.text).astype(np.int32)
    # places, because a segment that is not full leaves positions free
    places: np.ndarray = np.searchsorted(to_array(view.starts), memory.units.starts)
    cases = {MEMORY: Case([]), CONTEXT: Case([])}
    prompts = list(task.prompts(GridPoint(task.task.name, seed, 0, num_in_memory)))
    for first in range(0, len(prompts), ITEMS_AT_ONCE):
        part = prompts[first : first + ITEMS_AT_ONCE]
        asked = [label_prompt(prompt) for prompt in part]
        began = perf_counter(), process_time()
        readings = read_labels(model, asked, view, plan)
        _note(cases[MEMORY], began, [reading.scores for reading in readings], part)
        shown = [_shown(text, places, memory.units.lengths, reading.read) for reading in readings]
        anew = [replace(own, own=np.concatenate([*each, own.own])) for own, each in zip(asked, shown, strict=True)]
        began = perf_counter(), process_time()
        scores = score_labels(model, anew)
        _note(cases[CONTEXT], began, [score.backbone for score in scores], part)
    return _figures(model, task, cases, encode_s, num_in_memory, num_read)


def _shown(text: np.ndarray, places: np.ndarray, lengths: np.ndarray, read: np.ndarray) -> list[np.ndarray]:
    """Return the tokens of the demonstrations that were read, in their order."""
    return [text[places[index] : places[index] + lengths[index]] for index in read]


def _note(case: Case, began: tuple[float, float], scores: Sequence[CandidateScores], prompts: Sequence[Prompt]) -> None:
    case.wall_s += perf_counter() - began[0]
    case.cpu_s += process_time() - began[1]
    for score, prompt in zip(scores, prompts, strict=True):
        lengths = [len(target) for target in prompt.targets.values()]
        best = int(np.argmax(score.logprobs / np.array(lengths)))
        case.right.append(list(prompt.targets)[best] == prompt.gold)


def _figures(
    model: LongMem, task: PreparedTask, cases: dict[str, Case], encode_s: float, num_in_memory: int, num_read: int
) -> dict[str, Any]:
    count = len(task.items)
    ours, theirs = (np.array([cases[name].right], dtype=np.float64) for name in (MEMORY, CONTEXT))
    return {
        "task": task.task.name,
        "items": count,
        "demonstrations_in_memory": num_in_memory,
        "demonstrations_read": num_read,
        "pack_tokens": task.pack_tokens,
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "encode_s": encode_s,
        "cases": {
            name: {
                "accuracy": float(np.mean(case.right)),
                "seconds_per_item": case.wall_s / count,
                "cpu_seconds_per_item": case.cpu_s / count,
            }
            for name, case in cases.items()
        },
        "seconds_ratio": cases[MEMORY].wall_s / cases[CONTEXT].wall_s,
        "accuracy_difference": vars(paired_bootstrap(ours, theirs)),
    }


def markdown(figures: dict[str, Any]) -> str:
    """Return a table of both cases."""
    lines = [
        f"### {figures['task']}: {figures['items']} items, {figures['demonstrations_read']} of "
        f"{figures['demonstrations_in_memory']:,} demonstrations, encoded in packs of {figures['pack_tokens']:,} "
        "tokens",
        "",
        "| demonstrations | accuracy | seconds per item | CPU seconds per item |",
        "|---|--:|--:|--:|",
    ]
    for name, case in figures["cases"].items():
        lines.append(
            f"| {name} | {case['accuracy']:.1%} | {case['seconds_per_item']:.3f} | {case['cpu_seconds_per_item']:.3f} |"
        )
    difference = figures["accuracy_difference"]
    inside = "" if difference["low"] is None else f" ({_points(difference['low'])} to {_points(difference['high'])})"
    lines += [
        "",
        f"From memory takes {figures['seconds_ratio']:.2f} of the seconds; its accuracy differs by "
        f"{_points(difference['value'])} points{inside}. "
        f"All demonstrations were encoded once, in {figures['encode_s']:.0f} s.",
    ]
    return "\n".join(lines) + "\n"


def _points(share: float) -> str:
    return signed(100 * share, "+.1f")
