"""Suffix identification: which of several texts follows a context. Files of such examples, in three layouts.

.jsonl   {"prefix": …, "candidates": […], "label": 3}    one example per line; optional `id` and `book`
.jsonl   {"ctx": …, "pos": …, "negs": […]}               one example per line; optional `id` and `book`
.json    {split: {work: [{"ctx": …, "pos": …, "negs": […]}, …]}}    ChapterBreak (Sun et al., NAACL 2022)
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longmem.errors import ConfigError

LAYOUTS = 'expected {"prefix", "candidates", "label"} or {"ctx", "pos", "negs"}'


@dataclass(frozen=True)
class SuffixExample:
    """A context and the texts of which one follows it."""

    id: str
    work: str
    """The book that it is from; several examples may share it."""
    context: str
    candidates: tuple[str, ...]
    label: int
    """Which candidate follows the context."""


def read_examples(path: Path, split: str | None = None) -> list[SuffixExample]:
    """All examples of a file; of a ChapterBreak file those of one split.

    Raises ConfigError, naming line or place, for anything that is not an example: a set with some left out would be
    another set.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; expected a .jsonl or .json file") from error
    if path.suffix == ".jsonl":
        if split is not None:
            raise ConfigError(f"--split names a part of a ChapterBreak .json file, {path.name} has none; leave it out")
        examples = list(_from_lines(path, text))
    elif path.suffix == ".json":
        examples = list(_from_works(path, _parse(text, str(path)), split))
    else:
        raise ConfigError(f"{path} has an unknown format: expected .jsonl or .json; {LAYOUTS}")
    if not examples:
        raise ConfigError(f"{path} holds no examples; {LAYOUTS}")
    _check_ids(path, examples)
    return examples


def _from_lines(path: Path, text: str) -> Iterator[SuffixExample]:
    # not splitlines: JSON may hold U+2028 and its kin inside a string
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path} line {number}"
            yield _example(_parse(line, where), where, f"{path.stem}:{number}")


def _from_works(path: Path, values: Any, split: str | None) -> Iterator[SuffixExample]:
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be an object of splits and works, got {type(values).__name__}")
    if split not in values:
        raise ConfigError(f"{path} has the splits {sorted(values)[:5]}, choose one with --split (got {split})")
    works = values[split]
    if not isinstance(works, dict) or not all(isinstance(each, list) for each in works.values()):
        raise ConfigError(f"{path}: split {split} must be an object of works with a list of examples each")
    for work, examples in works.items():
        for number, example in enumerate(examples):
            yield _example(example, f"{path} work {work} example {number}", f"{work}:{number}", work)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid JSON: {error}; {LAYOUTS}") from error


def _example(values: Any, where: str, default_id: str, work: str | None = None) -> SuffixExample:
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be an object, got {type(values).__name__}; {LAYOUTS}")
    context, candidates, label = (values.get(name) for name in ("prefix", "candidates", "label"))
    if "ctx" in values:
        negatives = values.get("negs")
        candidates = [values.get("pos"), *(negatives if isinstance(negatives, list) else [None])]
        context, label = values["ctx"], 0
    if not isinstance(candidates, list) or len(candidates) < 2:
        raise ConfigError(f"{where} needs a list of at least two candidates; {LAYOUTS}")
    texts = {"context": context, **{f"candidate {index}": text for index, text in enumerate(candidates)}}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip() or not _is_unicode(text):
            raise ConfigError(f"{where}: {name} must be a text that is not empty, got {text!r:.40}; {LAYOUTS}")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(candidates):
        raise ConfigError(f"{where}: label must be a whole number from 0 to {len(candidates) - 1}, got {label!r}")
    return SuffixExample(
        id=str(values.get("id", default_id)),
        work=str(work or values.get("book", "")),
        context=str(context),
        candidates=tuple(candidates),
        label=label,
    )


def _is_unicode(text: str) -> bool:
    """Whether the text can be written: JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_ids(path: Path, examples: list[SuffixExample]) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise ConfigError(f"{path}: the id {example.id!r} occurs twice; ids must differ")
        seen.add(example.id)
