# SPDX-License-Identifier: Apache-2.0
"""Examples of suffix identification: a context and candidate texts, in three file layouts.

.jsonl   {"prefix": …, "candidates": […], "label": 3}    one example per line; optional `id` and `book`
.jsonl   {"ctx": …, "pos": …, "negs": […]}               one example per line; optional `id` and `book`
.json    {split: {work: [{"ctx": …, "pos": …, "negs": […]}, …]}}    ChapterBreak (Sun et al., NAACL 2022)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longmem.errors import ConfigError, DocumentError
from longmem.text.json_lines import read_json_file, read_objects
from longmem.text.naming import given_id
from longmem.text.opening import compression_of

LAYOUTS = '{"prefix", "candidates", "label"} or {"ctx", "pos", "negs"}'


@dataclass(frozen=True)
class SuffixExample:
    """Context and candidate texts, one of which follows it."""

    id: str
    work: str
    """Source book; several examples may share it."""
    context: str
    candidates: tuple[str, ...]
    label: int
    """Index of the candidate that follows the context."""


def read_examples(path: Path, split: str | None = None) -> list[SuffixExample]:
    """Return all examples of a file, which may be compressed; `split` selects a part of a ChapterBreak file.

    Raises ConfigError with the location of any invalid example: skipping it would change the test set.
    """
    form = _unpacked(path).suffix
    try:
        if form in (".jsonl", ".ndjson"):
            if split is not None:
                raise ConfigError(
                    f"--split names a part of a ChapterBreak .json file, {path.name} has none; leave it out"
                )
            rows = read_objects(path, expected=LAYOUTS)
            examples = [_example(values, where, f"{_unpacked(path).stem}:{number}") for number, where, values in rows]
        elif form == ".json":
            examples = list(_from_works(path, read_json_file(path, expected=LAYOUTS), split))
        else:
            raise ConfigError(f"{path} has an unknown format: expected .jsonl or .json with {LAYOUTS}")
    except DocumentError as error:
        raise ConfigError(str(error)) from error
    if not examples:
        raise ConfigError(f"{path} holds no examples; expected {LAYOUTS}")
    _check_ids(path, examples)
    return examples


def _unpacked(path: Path) -> Path:
    """Return a file's name without its compression suffix."""
    return Path(path.name[: len(path.name) - len(compression_of(path.name))])


def _from_works(path: Path, values: Any, split: str | None) -> Iterator[SuffixExample]:
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be an object of splits and works, got {type(values).__name__}")
    if split not in values:
        raise ConfigError(f"{path} has the splits {sorted(values)[:5]}, choose one with --split (got {split})")
    works = values[split]
    if not isinstance(works, dict) or not all(isinstance(examples, list) for examples in works.values()):
        raise ConfigError(f"{path}: split {split} must be an object of works with a list of examples each")
    for work, examples in works.items():
        for number, example in enumerate(examples):
            yield _example(example, f"{path} work {work} example {number}", f"{work}:{number}", work)


def _example(values: Any, where: str, default_id: str, work: str | None = None) -> SuffixExample:
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be an object, got {type(values).__name__}; expected {LAYOUTS}")
    context, candidates, label = (values.get(name) for name in ("prefix", "candidates", "label"))
    if "ctx" in values:
        negatives = values.get("negs")
        candidates = [values.get("pos"), *(negatives if isinstance(negatives, list) else [None])]
        context, label = values["ctx"], 0
    if not isinstance(candidates, list) or len(candidates) < 2:
        raise ConfigError(f"{where} needs a list of at least two candidates; expected {LAYOUTS}")
    texts = {"context": context, **{f"candidate {index}": text for index, text in enumerate(candidates)}}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip() or not _is_unicode(text):
            raise ConfigError(f"{where}: {name} must be a text that is not empty, got {text!r:.40}; expected {LAYOUTS}")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(candidates):
        raise ConfigError(f"{where}: label must be a whole number from 0 to {len(candidates) - 1}, got {label!r}")
    given, book = (_name(values, name, where) for name in ("id", "book"))
    return SuffixExample(
        id=given or default_id,
        work=work or book or "",
        context=str(context),
        candidates=tuple(candidates),
        label=label,
    )


def _name(values: dict[str, Any], name: str, where: str) -> str | None:
    """Return an id accepted by `given_id`, or None if there is none."""
    try:
        given = given_id(values.get(name), name)
    except DocumentError as error:
        raise ConfigError(f"{where}: {error}") from error
    if given is not None and not _is_unicode(given):
        raise ConfigError(f"{where}: {name} is not valid Unicode")
    return given


def _is_unicode(text: str) -> bool:
    """Return whether the text is valid Unicode: JSON can encode unpaired surrogates, which tokenizers reject."""
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
