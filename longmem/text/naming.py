"""Ids of documents: which are given, and how those of files are told apart.

A file's id is its name without suffix, or its path below the folder that was given. Where two files would have one id,
both get as much of the path in front as tells them apart: `1342/text` and `84/text`.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import isfinite
from unicodedata import category

from longmem.errors import DocumentError

INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}
"""Unicode categories of controls, formats (zero-width characters) and spaces."""


def given_id(value: object, field: str = "id") -> str | None:
    """Return the id that a row gives itself, None where it gives none: no value, or a text without a visible character.

    Numbers are spelled out, so `1` and `"1"` are one id. Raises DocumentError for anything else.
    """
    if value is None or (isinstance(value, str) and all(category(each) in INVISIBLE for each in value)):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return str(value)
    raise DocumentError(f"`{field}` must be a text or a number, got {type(value).__name__} {value!r:.40}")


def tell_apart(names: Sequence[str], stems: Sequence[str], suffixes: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Return one id for each file, equal to its name where no other file of its group has that name.

    `names`: ids by themselves. `stems`: whole paths without suffix, which end with the names. Files of one stem differ
    by suffix and keep it. The result depends on which files there are and on nothing else.
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
    """Return ids of one file, each with more of its path than the one before; at last those with the suffix."""
    rest = stem[: len(stem) - len(name)].strip("/").split("/") if stem.endswith(name) else []
    longer = ["/".join([*rest[start:], name]) for start in range(len(rest) - 1, -1, -1) if rest[start]]
    return [name, *longer, *(each + suffix for each in (name, *longer))]


def _clashes(keys: Sequence[tuple[str, str]]) -> list[int]:
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        places[key].append(index)
    return [index for same in places.values() if len(same) > 1 for index in same]
