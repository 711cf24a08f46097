# SPDX-License-Identifier: Apache-2.0
"""Whole demonstrations read from memory, against the same demonstrations encoded anew for every item.

Both have the same demonstrations in the same order in front of the item. From memory, their keys and values were
computed once, each behind others of its segment. In context, they are run with each item, as retrieval-augmented
prompts are. The two take turns item by item.
"""

from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from longmem.config import DemonstrationChoice
from longmem.dtypes import to_array
from longmem.errors import ConfigError
from longmem.memory.context import LocalMemory
from longmem.model.longmem import LongMem
from longmem.scoring.labels import CandidateScores, LabelPrompt, score_labels
from longmem.sidenet.demonstration_choice import DemonstrationPlan
from longmem.wording import signed
from pipelines.icl.metrics import paired_bootstrap
from pipelines.icl.requests import label_prompt
from pipelines.icl.task_data import GridPoint, PreparedTask, Prompt

MEMORY, CONTEXT = "read from memory", "encoded anew in context"


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
    for prompt in task.prompts(GridPoint(task.task.name, seed, 0, num_in_memory)):
        own = label_prompt(prompt)
        began = perf_counter(), process_time()
        (score,) = score_labels(model, [own], view, plan)
        _note(cases[MEMORY], began, score.longmem, prompt)
        shown = [
            text[start : start + length]
            for start, length in zip(places[score.read], memory.units.lengths[score.read], strict=True)
        ]
        anew = LabelPrompt(own.name, np.concatenate([own.context, *shown]), own.own, own.targets)
        began = perf_counter(), process_time()
        (score,) = score_labels(model, [anew])
        _note(cases[CONTEXT], began, score.backbone, prompt)
    return _figures(model, task, cases, encode_s, num_in_memory, num_read)


def _note(case: Case, began: tuple[float, float], scores: CandidateScores, prompt: Prompt) -> None:
    case.wall_s += perf_counter() - began[0]
    case.cpu_s += process_time() - began[1]
    lengths = [len(target) for target in prompt.targets.values()]
    best = int(np.argmax(scores.logprobs / np.array(lengths)))
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
        f"{figures['demonstrations_in_memory']:,} demonstrations",
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
