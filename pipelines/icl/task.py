# SPDX-License-Identifier: Apache-2.0
"""Task definition: examples, their form as text, and the target. Each task is one small TOML file.

    name = "sst2"
    train = "sst2/train.jsonl"                             # demonstrations: objects with any fields, one a line
    test = "sst2/test.jsonl"                               # items
    template = "Review: {text} Sentiment: {label}. "
    target = "label"                                       # the field that is predicted

    [words]                                                # value in the data = word in the text
    negative = "negative"                                  # optional; default: the values of `train`

Answers of a task without labels are generated. It has `max_new_tokens` and `until` instead of words, and its target may
be a list of accepted answers, of which demonstrations contain the first. `.json` files have the layout of SQuAD 1.1.
Files may be compressed (.gz, .zst, .bz2, .xz).

Fields are written as the file spells them: texts, numbers (`1.50` stays `1.50`), `true` and `false`. A row whose field
is null, NaN, a list or an object is an error. Braces in the data are data.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any

from longmem.errors import ConfigError, DocumentError
from longmem.text.json_lines import read_json_file, read_objects
from longmem.text.opening import compression_of
from longmem.wording import reason_of

SHIPPED = Path(__file__).parent / "tasks"
NAMES = tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))
REQUIRED = {"name", "train", "test", "template", "target"}
OPTIONAL = {"words", "max_new_tokens", "until"}
JSON_NAMES = {float: "not a finite number:", list: "a list:", dict: "an object:"}


@dataclass(frozen=True)
class Example:
    """Row of the data as text."""

    name: str
    """Location of the row: file and line, or id."""
    prompt: str
    """Text before the target, without trailing spaces."""
    after: str
    """Text after the target."""
    answers: tuple[str, ...]
    """Label of the row, or all accepted answers; a demonstration contains the first."""


@dataclass(frozen=True, kw_only=True)
class IclTask:
    """Definition of a task. Raises ConfigError for a template that does not fit its target."""

    name: str
    train: Path
    test: Path
    template: str
    target: str
    words: dict[str, str]
    """Word of each label; empty for generated answers, and for labels that are their own words."""
    max_new_tokens: int = 0
    """Maximum length of an answer; above 0, answers are generated instead of chosen among labels."""
    until: str = ""

    def __post_init__(self) -> None:
        if self.fields.count(self.target) != 1:
            raise ConfigError(
                f"task {self.name}: the template must have {{{self.target}}}, the target, exactly once, got "
                f"{self.template!r}"
            )
        if odd := [
            part for _, _, form, conversion in Formatter().parse(self.template) for part in (form, conversion) if part
        ]:
            raise ConfigError(
                f"task {self.name}: fields of a template are written as they are, without a format or conversion; take "
                f"{odd[0]!r} out of {self.template!r}"
            )
        if not self.around_target[0].strip():
            raise ConfigError(
                f"task {self.name}: the template must have something before {{{self.target}}} to predict it from, "
                f"got {self.template!r}"
            )
        if self.max_new_tokens < 0 or bool(self.max_new_tokens) != bool(self.until):
            raise ConfigError(
                f"task {self.name}: generated answers need max_new_tokens of at least 1 and until, a text that ends "
                f"them, got {self.max_new_tokens} and {self.until!r}"
            )
        if self.words and self.generates:
            raise ConfigError(f"task {self.name}: answers are either chosen among words or generated, not both")
        if len({word.strip() for word in self.words.values()}) < len(self.words):
            raise ConfigError(f"task {self.name}: two labels have the same word: {self.words}")

    @property
    def generates(self) -> bool:
        return self.max_new_tokens > 0

    @cached_property
    def fields(self) -> list[str]:
        """Field names of the template, in order."""
        try:
            return [field for _, field, _, _ in Formatter().parse(self.template) if field is not None]
        except ValueError as error:
            raise ConfigError(f"task {self.name}: the template {self.template!r} is malformed: {error}") from error

    @cached_property
    def around_target(self) -> tuple[str, str]:
        """Parts of the template before and after the target; literal braces stay doubled."""
        parts = ["", ""]
        index = 0
        for literal, field, _, _ in Formatter().parse(self.template):
            parts[index] += literal.replace("{", "{{").replace("}", "}}")
            if field == self.target:
                index += 1
            elif field is not None:
                parts[index] += f"{{{field}}}"
        return parts[0], parts[1]

    def examples(self, path: Path) -> list[Example]:
        """Return the rows of a file as examples.

        Raises DocumentError, naming file and line, for a row that lacks a field, has one that is not a text or a
        number, an empty target, or a label without a word.
        """
        return [self._example(name, row) for name, row in read_rows(path)]

    def _example(self, name: str, row: dict[str, Any]) -> Example:
        if missing := [field for field in self.fields if field not in row]:
            raise DocumentError(
                f"{name}: no field {', '.join(missing)} for the template of task {self.name}; it has {', '.join(row)}"
            )
        values = {field: spelled(name, field, row[field]) for field in self.fields if field != self.target}
        answers = self._answers(name, row[self.target])
        if not answers or not answers[0].strip():
            raise DocumentError(f"{name}: {self.target}, the target of task {self.name}, is empty; remove the row")
        if self.words and answers[0] not in self.words:
            raise DocumentError(
                f"{name}: unknown label {answers[0]!r}: task {self.name} has {', '.join(self.words)}; correct the row, "
                "or give the label a word in the task's file"
            )
        before, after = self.around_target
        # spaces between examples move to the start of the next one, where tokenizers expect them
        lead = after[len(after.rstrip(" ")) :]
        return Example(name, lead + before.format(**values).rstrip(" "), after.rstrip(" ").format(**values), answers)

    def _answers(self, name: str, value: object) -> tuple[str, ...]:
        """Return the label, or all accepted answers; only generated answers may have several."""
        if isinstance(value, list) and self.generates:
            return tuple(spelled(name, self.target, answer) for answer in value)
        return (spelled(name, self.target, value),)

    def target_text(self, example: Example) -> str:
        """Return the target of an example as it is written in a demonstration."""
        return self.words.get(example.answers[0], example.answers[0])


def load_task(name: str, data: Path | None) -> IclTask:
    """Load a shipped task by name, with its files in `data`, or a task by the path of its TOML file.

    Raises ConfigError for an unknown name, an invalid task file, and missing data files.
    """
    path = Path(name) if name.endswith(".toml") else SHIPPED / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"no task {name!r}: expected one of {', '.join(NAMES)}, or the path of a .toml file")
    if path.parent == SHIPPED and data is None:
        raise ConfigError(f"task {name} needs --data, the folder that holds its files")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read task {path}: {reason_of(error)}") from error
    if (lacks := REQUIRED - values.keys()) or (odd := values.keys() - REQUIRED - OPTIONAL):
        wrong = f"lacks {', '.join(sorted(lacks))}" if lacks else f"does not know {', '.join(sorted(odd))}"
        raise ConfigError(f"task {path} {wrong}; it has {', '.join(sorted(REQUIRED))}, and may have {sorted(OPTIONAL)}")
    _check_kinds(path, values)
    folder = data or path.parent
    task = IclTask(
        **{
            **values,
            "train": folder / values["train"],
            "test": folder / values["test"],
            "words": dict(values.get("words", {})),
        }
    )
    for path in (task.train, task.test):
        if not path.is_file():
            raise ConfigError(f"task {task.name}: no file {path}; name the folder of its data with --data")
    return task


def _check_kinds(path: Path, values: dict[str, Any]) -> None:
    """Raise ConfigError for a value of a task's file that has the wrong type."""
    for name, value in values.items():
        if name == "words":
            fits = isinstance(value, dict) and all(isinstance(word, str) and word.strip() for word in value.values())
            expected = "a table with a text for each label"
        elif name == "max_new_tokens":
            fits, expected = type(value) is int, "a whole number"
        else:
            fits, expected = isinstance(value, str) and (name == "until" or bool(value.strip())), "a text"
        if not fits:
            raise ConfigError(f"task {path}: {name} must be {expected}, got {value!r:.80}")


def spelled(name: str, field: str, value: object) -> str:
    """Return a field's value as the file spells it: texts, numbers, `true` and `false`.

    Raises DocumentError for null, NaN, lists and objects, and for text that is not valid Unicode.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        got = "null" if value is None else f"{JSON_NAMES.get(type(value), type(value).__name__)} {value!r:.40}"
        raise DocumentError(
            f"{name}: field {field} is {got}: expected a text, a number, true or false; correct or remove the row"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DocumentError(f"{name}: field {field} is not valid Unicode: {error.reason} at {error.start}") from error
    # numbers are read as text with their original spelling
    return str(value)


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and rows of a file; numbers keep their spelling.

    Raises DocumentError for a row that is not a JSON object.
    """
    if path.name[: len(path.name) - len(compression_of(path.name))].endswith(".json"):
        yield from _squad_rows(path)
        return
    for number, _, row in read_objects(path, spelled_numbers=True, expected="a JSON object"):
        yield f"{path.name}:{number}", row


def _squad_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    values = read_json_file(path, spelled_numbers=True, expected="the layout of SQuAD 1.1")
    try:
        for article in values["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [answer["text"] for answer in question["answers"]]
                    yield str(question["id"]), {**question, "context": paragraph["context"], "answers": answers}
    except (KeyError, TypeError) as error:
        raise DocumentError(f"{path}: expected the layout of SQuAD 1.1, which differs at {error}") from error
