# SPDX-License-Identifier: Apache-2.0
"""Answers to the page of items, as JSON values: the grid, the items of one cell, and one item with what it read."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from pipelines.view.icl_folder import IclFolder, Point, ShownExample
from pipelines.view.questions import AbstractAnswers, BadRequestError, NoSuchAnswerError

PAGE_ITEMS = 200
"""Items of one page."""
LISTED_CHARACTERS = 240
"""Characters of an item in a list; its end, where the label follows, is kept."""
SHOWN = ("all", "wrong", "right", "gained", "lost")
"""Kinds of items that a list can be limited to. LongMem is right and the backbone wrong, or the other way round, in the
last two."""
SCORINGS = {"normalised": "", "greedy": "_greedy", "calibrated": "_calibrated"}
"""Suffixes of the columns of each way to choose a label."""


class IclAnswers(AbstractAnswers):
    """Answers about one job of in-context learning. Thread-safe."""

    page_kind = "items"

    def __init__(self, folder: IclFolder) -> None:
        self._folder = folder
        self._tasks: dict[str, dict[str, Any]] = folder.summary["tasks"]
        self._names = list(self._tasks)

    def answer(self, name: str, number: Callable[[str], int]) -> Any:
        if name == "run":
            return self.run()
        if name not in ("items", "item"):
            raise NoSuchAnswerError(name)
        fields = {field: number(field) for field in ("task", "seed", "shots", "memory")}
        if name == "item":
            return self.item(**fields, item=number("item"))
        limits = ("scoring", "show", "gold", "answer", "first")
        return self.items(**fields, **{field: number(field) for field in limits})

    def run(self) -> dict[str, Any]:
        summary = self._folder.summary
        whole = summary["grid"].get("whole")
        return {
            "model": summary["model"]["name"],
            "created": summary.get("created"),
            "page_items": PAGE_ITEMS,
            "whole": whole and {"read": whole["num_read"], "choice": whole["choice"]},
            "copies": bool(summary["settings"].get("copy_head")),
            "shots": summary["grid"]["shots"],
            "memory_shots": summary["grid"]["memory_shots"],
            "seeds": summary["grid"]["seeds"],
            "tasks": [
                {
                    "name": name,
                    "labels": list(task["labels"]),
                    "items": task["items"],
                    "template": task["template"],
                    "scorings": self._scorings(name),
                    "grid": [
                        {key: row[key] for key in ("shots", "memory_shots", "model", "scoring", "metric", "mean")}
                        for row in task["grid"]
                        if row["metric"] in ("accuracy", "exact_match")
                    ],
                }
                for name, task in self._tasks.items()
            ],
        }

    def items(
        self, task: int, seed: int, shots: int, memory: int, scoring: int, show: int, gold: int, answer: int, first: int
    ) -> dict[str, Any]:
        """Return at most `PAGE_ITEMS` items of a cell from the `first` on, of those that fit the filters.

        `scoring` counts the task's scorings, and `show` the kinds `SHOWN`. `gold` and `answer` count the task's labels,
        -1 is any; one more than there are labels is an answer that is none of them.
        """
        point, scored = self._point(task, seed, shots, memory), self._scoring(task, scoring, memory)
        if not 0 <= show < len(SHOWN):
            raise BadRequestError(f"show must be 0 to {len(SHOWN) - 1}, got {show}")
        labels: list[str | None] = [*self._tasks[point[0]]["labels"], None]
        for name, value in (("gold", gold), ("answer", answer)):
            if not -1 <= value < len(labels):
                raise BadRequestError(f"{name} must be -1 to {len(labels) - 1}, got {value}")
        rows = [_judged(row, scored) for row in self._folder.answers(point)]
        counts = Counter(kind for row in rows for kind in _kinds(row))
        fits = [
            number
            for number, row in enumerate(rows)
            if SHOWN[show] in _kinds(row)
            and (gold < 0 or row["gold"] == labels[gold])
            and (answer < 0 or row["longmem"] == labels[answer])
        ]
        # neighbours in the list, for the keyboard, even past the end of a page
        first = max(0, min(first, len(fits)))
        return {
            "first": first,
            "total": len(fits),
            "scoring": scored,
            "counts": {kind: counts[kind] for kind in SHOWN},
            "backbone_right": sum(bool(row["backbone_right"]) for row in rows),
            "numbers": fits,
            "wrong": [number for number in fits if not rows[number]["right"]],
            "items": [
                {"item": number, **rows[number], "text": self._listed(point[0], number)}
                for number in fits[first : first + PAGE_ITEMS]
            ],
        }

    def item(self, task: int, seed: int, shots: int, memory: int, item: int) -> dict[str, Any]:
        """Return one item: its text, every answer, what each model and vote says of each label, and what was read."""
        point = self._point(task, seed, shots, memory)
        name, about = point[0], self._tasks[point[0]]
        if not 0 <= item < about["items"]:
            raise BadRequestError(f"task {task} has items 0 to {about['items'] - 1}, got {item}")
        answers, read = self._folder.answers(point)[item], self._folder.reading(point, item)
        kept = read["shots_in_context"]
        context = about["in_context"][seed][:shots]
        return {
            "item": item,
            **_text_of(self._folder.example(name, "item", item)),
            "label": answers["gold"],
            "answers": {key: value for key, value in answers.items() if key != "gold"},
            "logprobs": {side: read[f"{side}_logprobs"] for side in ("longmem", "backbone")},
            "votes": {
                key.removesuffix("_votes"): value for key, value in read.items() if key.endswith("_votes") and value
            },
            "regression": read.get("regression"),
            "copy_share": read.get("copy_share"),
            "mixture": self._mixture(point),
            "demonstrations": [
                {**each, **_text_of(self._folder.example(name, "demonstration", each["example"]))}
                for each in read["demonstrations"]
            ],
            "in_context": [
                _text_of(self._folder.example(name, "demonstration", number))
                for number in context[len(context) - kept :]
            ],
        }

    def _point(self, task: int, seed: int, shots: int, memory: int) -> Point:
        if not 0 <= task < len(self._names):
            raise BadRequestError(f"the run has tasks 0 to {len(self._names) - 1}, got {task}")
        point = (self._names[task], seed, shots, memory)
        if point not in self._folder.points:
            raise BadRequestError(
                f"task {task} has no seed {seed} with {shots} demonstrations in context and {memory} in memory"
            )
        return point

    def _scorings(self, name: str) -> list[str]:
        found = {row["scoring"] for row in self._tasks[name]["grid"]}
        return [scoring for scoring in (*SCORINGS, "generated") if scoring in found]

    def _scoring(self, task: int, scoring: int, memory: int) -> str:
        """Return the name of a scoring; nothing is calibrated without memory."""
        scorings = self._scorings(self._names[task])
        if not 0 <= scoring < len(scorings):
            raise BadRequestError(f"task {task} has scorings 0 to {len(scorings) - 1}, got {scoring}")
        return "normalised" if scorings[scoring] == "calibrated" and not memory else scorings[scoring]

    def _listed(self, task: str, number: int) -> str:
        example = self._folder.example(task, "item", number)
        text = example.passage[: example.start].rstrip(" ")
        return text if len(text) <= LISTED_CHARACTERS else f"…{text[-LISTED_CHARACTERS:]}"

    def _mixture(self, point: Point) -> dict[str, float] | None:
        _, seed, shots, memory = point
        for fit in self._tasks[point[0]].get("calibration", []):
            if (fit["seed"], fit["shots"], fit["memory_shots"]) == (seed, shots, memory):
                return dict(fit["models"]["longmem"]["weights"])
        return None


def _judged(row: dict[str, Any], scoring: str) -> dict[str, Any]:
    """Return the right label and both answers of an item, and whether these are right; None for a missing answer."""
    if scoring == "generated":
        right = row["exact_match"] == 1
        return {"gold": row["gold"], "longmem": row["answer"], "right": right, "backbone": None, "backbone_right": None}
    ours, theirs = row[f"longmem{SCORINGS[scoring]}"], row[f"backbone{SCORINGS[scoring]}"]
    gold = row["gold"]
    return {"gold": gold, "longmem": ours, "right": ours == gold, "backbone": theirs, "backbone_right": theirs == gold}


def _kinds(row: dict[str, Any]) -> list[str]:
    kinds = ["all", "right" if row["right"] else "wrong"]
    if row["backbone_right"] is not None and row["backbone_right"] != row["right"]:
        kinds.append("gained" if row["right"] else "lost")
    return kinds


def _text_of(example: ShownExample) -> dict[str, str]:
    """Return an example's name, label and text, cut around its target."""
    cuts = (0, example.start, example.start + example.length, len(example.passage))
    before, target, after = (example.passage[first:last] for first, last in pairwise(cuts))
    return {"name": example.name, "label": example.label, "before": before, "target": target, "after": after}
