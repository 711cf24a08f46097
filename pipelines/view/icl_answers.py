# SPDX-License-Identifier: Apache-2.0
"""Answers to the page of items, as JSON values: the grid, the items of one cell, and one item with what it read."""

from itertools import pairwise
from typing import Any

from pipelines.view.icl_folder import IclFolder, Point, ShownExample
from pipelines.view.item_answers import Control, ItemAnswers, shortened
from pipelines.view.questions import BadRequestError

SCORINGS = {"normalised": "", "greedy": "_greedy", "calibrated": "_calibrated"}
"""Suffixes of the columns of each way to choose a label."""
NAMES = {
    "normalised": "mean log-probability",
    "greedy": "greedy first token",
    "calibrated": "calibration",
    "generated": "generation",
}


class IclAnswers(ItemAnswers):
    """Answers about one job of in-context learning. Thread-safe."""

    def __init__(self, folder: IclFolder) -> None:
        self._folder = folder
        self._tasks: dict[str, dict[str, Any]] = folder.summary["tasks"]

    @property
    def _names(self) -> list[str]:
        return list(self._tasks)

    def run(self) -> dict[str, Any]:
        summary = self._folder.summary
        whole = summary["grid"].get("whole")
        return {
            **self._described(),
            "panel": "demonstrations",
            "unit": "item",
            "other": "backbone",
            "none": "no label",
            "model": summary["model"]["name"],
            "created": summary.get("created"),
            "whole": whole and {"read": whole["num_read"], "choice": whole["choice"]},
            "copies": bool(summary["settings"].get("copy_head")),
        }

    def _labels(self, task: int) -> list[str]:
        return list(self._tasks[self._names[task]]["labels"])

    def _controls(self, task: int) -> list[Control]:
        grid, scorings = self._folder.summary["grid"], self._scorings(self._names[task])
        shots, memory = ([(each, f"{each:,}") for each in grid[name]] for name in ("shots", "memory_shots"))
        seeds = [(seed, str(seed)) for seed in range(grid["seeds"])]
        return [
            # the cell with the most in memory and the least in context, and the best way to answer that there is
            Control("shots", "c", "In context", shots, min(grid["shots"])),
            Control("memory", "m", "In memory", memory, max(grid["memory_shots"])),
            Control("seed", "d", "Seed", seeds, 0),
            Control(
                "scoring",
                "s",
                "Answer by",
                [(number, NAMES[scoring]) for number, scoring in enumerate(scorings)],
                scorings.index("calibrated") if "calibrated" in scorings else 0,
            ),
        ]

    def _rows(self, task: int, cell: dict[str, int]) -> list[dict[str, Any]]:
        point = self._point(task, cell["seed"], cell["shots"], cell["memory"])
        scored = self._scoring(task, cell["scoring"], cell["memory"])
        return [{"item": at, **_judged(row, scored)} for at, row in enumerate(self._folder.answers(point))]

    def _note(self, task: int, cell: dict[str, int]) -> str:
        chosen = self._scorings(self._names[task])[cell["scoring"]]
        scored = self._scoring(task, cell["scoring"], cell["memory"])
        return "" if scored == chosen else f", by {NAMES[scored]} without memory"

    def _listed(self, task: int, item: int) -> dict[str, str]:
        example = self._folder.example(self._names[task], "item", item)
        return {"text": shortened(example.passage[: example.start].rstrip(" "))}

    def _item(self, task: int, cell: dict[str, int], item: int) -> dict[str, Any]:
        return self.item(task, cell["seed"], cell["shots"], cell["memory"], item)

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


def _text_of(example: ShownExample) -> dict[str, str]:
    """Return an example's name, label and text, cut around its target."""
    cuts = (0, example.start, example.start + example.length, len(example.passage))
    before, target, after = (example.passage[first:last] for first, last in pairwise(cuts))
    return {"name": example.name, "label": example.label, "before": before, "target": target, "after": after}
