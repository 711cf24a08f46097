# SPDX-License-Identifier: Apache-2.0
"""Answers to the page of questions of `longmem probe --tokens`: each question with its answers and what they read."""

from pathlib import Path
from threading import RLock
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from longmem.errors import ConfigError
from longmem.wording import counted
from pipelines.job.format import distinct_percents
from pipelines.view.item_answers import KINDS, Control, ItemAnswers, short, shortened
from pipelines.view.questions import BadRequestError
from pipelines.view.tables import GroupedTable, read_summary, written_anew

SUBJECTS = {"passkey": "pass key", "lookup": "lookup", "labels": "random labels"}
READINGS = ("answers", "nats", "nats_without", "asked", "place", "blocks", "tokens")
SCORINGS = ("choice among the answers offered", "greedy decoding")


class ProbeFolder:
    """Tables of one finished job that kept its tokens. Thread-safe. Raises ConfigError for a folder without them."""

    def __init__(self, path: Path) -> None:
        self.summary = read_summary(path)
        for name in ("trials", "readings"):
            if not (path / f"{name}.parquet").is_file():
                raise ConfigError(
                    f"{path} holds no {name}.parquet: the job kept no tokens, or the table was removed; ask the "
                    f"questions again with `longmem probe … --tokens` and another --out, or {written_anew(path)}"
                )
        self._lock = RLock()
        try:
            self.trials: list[dict[str, Any]] = pq.read_table(path / "trials.parquet").to_pylist()
            """Rows of trials.parquet."""
            self._readings = GroupedTable(path / "readings.parquet", READINGS)
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"cannot read the tables in {path}: {error}; {written_anew(path)}") from error
        if self._readings.num_rows != len(self.trials):
            raise ConfigError(f"the tables in {path} are not of one job; {written_anew(path)}")

    def readings(self, number: int) -> dict[str, Any]:
        """Return what the right answer of a question read (`longmem.synthetic.answer_readings.AnswerReadings`)."""
        with self._lock:
            [row] = self._readings.rows(number, number + 1).to_pylist()
        found: dict[str, Any] = row
        return found


class ProbeAnswers(ItemAnswers):
    """Answers about one job of synthetic tests. Thread-safe."""

    kinds: ClassVar[dict[str, str]] = {**KINDS, "unread": "right place not read"}

    def __init__(self, folder: ProbeFolder) -> None:
        self._folder = folder
        self._of_subject: dict[str, list[int]] = {}
        for number, trial in enumerate(folder.trials):
            self._of_subject.setdefault(trial["subject"], []).append(number)
        # in ascending order: the fields of a page are whole numbers, so a depth is chosen by its index
        passkeys = (trial for trial in folder.trials if trial["subject"] == "passkey")
        self._depths = distinct_percents(trial["depth"] for trial in passkeys)

    @property
    def _names(self) -> list[str]:
        return [SUBJECTS[subject] for subject in self._of_subject]

    def _condition(self, trial: dict[str, Any]) -> str:
        if trial["subject"] == "passkey":
            return f"{counted(trial['memory_tokens'], 'token')} of memory, depth {self._depths[trial['depth']]}"
        shots = f", {trial['shots']:,} in context" if trial["shots"] else ""
        return f"{counted(trial['examples'], 'line')} in memory{shots}"

    def run(self) -> dict[str, Any]:
        summary = self._folder.summary
        return {
            **self._described(),
            "panel": "answers",
            "unit": "question",
            "other": "without memory",
            "none": "a tie",
            "model": summary["model"]["name"],
            "copies": bool(summary["settings"].get("copy_head")),
            "ways": ["with memory", "without memory"],
        }

    def _labels(self, task: int) -> list[str]:  # noqa: ARG002
        return []

    def _controls(self, task: int) -> list[Control]:
        subject = list(self._of_subject)[task]
        trials = [self._folder.trials[number] for number in self._of_subject[subject]]
        scoring = Control("scoring", "s", "Answer by", list(enumerate(SCORINGS)), 0)
        if subject == "passkey":
            lengths = sorted({trial["memory_tokens"] for trial in trials})
            return [
                _any_of("memory", "m", "Memory", [(length, counted(length, "token")) for length in lengths]),
                _any_of("depth", "e", "Depth", list(enumerate(self._depths.values()))),
                scoring,
            ]
        lines, shots = (sorted({trial[name] for trial in trials}) for name in ("examples", "shots"))
        return [
            _any_of("memory", "m", "Memory", [(count, counted(count, "line")) for count in lines]),
            _any_of("shots", "c", "In context", [(count, f"{count:,}") for count in shots]),
            scoring,
        ]

    def _rows(self, task: int, cell: dict[str, int]) -> list[dict[str, Any]]:
        subject = list(self._of_subject)[task]
        if cell["scoring"] not in range(len(SCORINGS)):
            raise BadRequestError(f"scoring must be 0 to {len(SCORINGS) - 1}, got {cell['scoring']}")
        rows, depths = [], list(self._depths)
        for number in self._of_subject[subject]:
            trial = self._folder.trials[number]
            held = {
                "memory": trial["memory_tokens" if subject == "passkey" else "examples"],
                "depth": depths.index(trial["depth"]) if subject == "passkey" else 0,
                "shots": trial["shots"],
            }
            if all(cell[name] in (-1, value) for name, value in held.items() if name in cell):
                rows.append({"item": number, **_judged(trial, greedy=cell["scoring"] == 1), "read": trial["read"]})
        return rows

    def _more_kinds(self, row: dict[str, Any]) -> list[str]:
        return [] if row["read"] else ["unread"]

    def _listed(self, task: int, item: int) -> dict[str, str]:  # noqa: ARG002
        trial = self._folder.trials[item]
        return {"text": shortened(_in_one_line(trial["question"])), "about": self._condition(trial)}

    def _item(self, task: int, cell: dict[str, int], item: int) -> dict[str, Any]:  # noqa: ARG002
        trial, read = self._trial(task, item), self._folder.readings(item)
        tokens, place = read["tokens"], read["place"]
        offered = zip(read["answers"], read["nats"], read["nats_without"], strict=True)
        chosen = (trial["longmem"], trial["backbone"])
        answers = [
            {
                "number": number,
                "text": text,
                "right": number == 0,
                "chosen": [text == each for each in chosen],
                "logprobs": [-nats, -nats_without],
                "heat": _heat(tokens) if number == 0 else None,
            }
            for number, (text, nats, nats_without) in enumerate(offered)
        ]
        return {
            "item": item,
            "name": self._condition(trial),
            "prompt": _in_one_line(trial["question"]),
            "label": trial["answer"],
            "answers": answers,
            "greedy": [
                {"text": trial[name], "right": trial[f"greedy{way}"]}
                for name, way in (("greedy_answer", ""), ("greedy_answer_without", "_without"))
            ],
            "place": {**_cut(place), "distance": read["asked"] - place["position"]},
            "found": [token["read"] for token in tokens],
            "blocks": _blocks(read),
            "worst": min(range(len(tokens)), key=lambda at: tokens[at]["logprob"]),
        }

    def _token(self, task: int, cell: dict[str, int], item: int, answer: int, token: int) -> dict[str, Any]:  # noqa: ARG002
        self._trial(task, item)
        read = self._folder.readings(item)
        if answer != 0 or not 0 <= token < len(read["tokens"]):
            raise BadRequestError(
                f"question {item} has tokens 0 to {len(read['tokens']) - 1} of answer 0, got token {token} of answer "
                f"{answer}"
            )
        found = read["tokens"][token]
        return {
            "position": read["asked"] + token,
            "text": found["passage"],
            "with": short(found["logprob"]),
            "without": short(found["logprob_without"]),
            "uncopied": short(found["uncopied"]),
            "share": short(found["copy_share"]),
            "copied": short(found["copied"]),
            "window": None,
            "places": [
                {**_cut(place), **_weighed(place), "right": place["position"] == found["right"]}
                for place in found["places"]
            ],
        }

    def _trial(self, task: int, item: int) -> dict[str, Any]:
        subject = list(self._of_subject)[task]
        if item not in self._of_subject[subject]:
            raise BadRequestError(f"task {task} has no item {item}")
        return self._folder.trials[item]


def _any_of(name: str, letter: str, title: str, options: list[tuple[int, str]]) -> Control:
    return Control(
        name,
        letter,
        title,
        [(-1, "any"), *options] if len(options) > 1 else options,
        options[0][0] if len(options) == 1 else -1,
    )


def _in_one_line(question: str) -> str:
    """Return a question with its lines, of which each is a pair, one after the other."""
    return question.replace("\n", " · ")


def _judged(trial: dict[str, Any], greedy: bool) -> dict[str, Any]:
    names = ("greedy_answer", "greedy_answer_without", "greedy") if greedy else ("longmem", "backbone", "chosen")
    return {
        "gold": trial["answer"],
        "longmem": trial[names[0]] or None,
        "right": trial[names[2]],
        "backbone": trial[names[1]] or None,
        "backbone_right": trial[f"{names[2]}_without"],
    }


def _heat(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the tokens of an answer as a page of `Answers.page`."""
    return {
        "first": 0,
        "gaps": [""] * len(tokens),
        "texts": [token["passage"] for token in tokens],
        "with": [short(token["logprob"]) for token in tokens],
        "without": [short(token["logprob_without"]) for token in tokens],
        "rest": "",
    }


def _blocks(read: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the intervals that every layer read, and whether each holds the answer."""
    position = read["place"]["position"]
    return [{"first": first, "end": end, "right": first <= position < end} for first, end in read["blocks"]]


def _cut(place: dict[str, Any]) -> dict[str, Any]:
    start, end = place["start"], place["start"] + place["length"]
    text = place["passage"]
    return {"position": place["position"], "before": text[:start], "text": text[start:end], "after": text[end:]}


def _weighed(place: dict[str, Any]) -> dict[str, Any]:
    return {"weight": short(place["weight"]), "run": place["run"], "same": place["same"]}
