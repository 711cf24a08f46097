# SPDX-License-Identifier: Apache-2.0
"""Ids of documents: given ids, and unique ids of files.

A file's id is its name without suffix, or its path relative to the input folder. If two files would have the same id,
both get as many leading path components as make them unique: `1342/text` and `84/text`.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import isfinite
from unicodedata import category

from longmem.errors import DocumentError

INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}
"""Unicode categories of controls, formats (zero-width characters) and spaces."""


def given_id(value: object, field: str = "id") -> str | None:
    """Return the id in a row, or None for no value and for a text without a visible character.

    Numbers become text, so `1` and `"1"` are the same id. Raises DocumentError for other types.
    """
    if value is None or (isinstance(value, str) and all(category(each) in INVISIBLE for each in value)):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return str(value)
    raise DocumentError(f"`{field}` must be a text or a number, got {type(value).__name__} {value!r:.40}")


def tell_apart(names: Sequence[str], stems: Sequence[str], suffixes: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Return one unique id per file, equal to its name if no other file of its group has that name.

    `names` are the preferred ids. `stems` are full paths without suffix, which end with the names. Files with the same
    stem keep their suffix. The result depends only on the set of files.
    """
    levels = [_levels(*each) for each in zip(names, stems, suffixes, strict=True)]
    used = [0] * len(levels)
    while clashes := _clashes([(group, level[step]) for group, level, step in zip(groups, levels, used, strict=True)]):
        grown = [index for index in clashes if used[index] + 1 < len(levels[index])]
        if not grown:
            break
        for index in grown:
            used[index] += 1
    return [level[step] for level, step in zip(levels, used, strict=True)]


def _levels(name: str, stem: str, suffix: str) -> list[str]:
    """Return candidate ids of one file, each with one more path component; finally those with the suffix."""
    rest = stem[: len(stem) - len(name)].strip("/").split("/") if stem.endswith(name) else []
    longer = ["/".join([*rest[start:], name]) for start in range(len(rest) - 1, -1, -1) if rest[start]]
    return [name, *longer, *(each + suffix for each in (name, *longer))]


def _clashes(keys: Sequence[tuple[str, str]]) -> list[int]:
    indices: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        indices[key].append(index)
    return [index for same in indices.values() if len(same) > 1 for index in same]
