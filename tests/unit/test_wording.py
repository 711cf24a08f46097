# SPDX-License-Identifier: Apache-2.0
"""Counts, signs and reasons in sentences, and a scan for counts that are written in another way."""

import re
from pathlib import Path

import pytest

from longmem.wording import counted, part_of, reason_of, signed

ROOT = Path(__file__).parents[2]
UNITS = "document|segment|token|word|window|block|item|question|example|demonstration|seed|worker|cell|epoch|passage"
OWN_PLURAL = re.compile(
    # `{number:,} segments` in Python, `{{ number|count }} segments` in a template, `${number(value)} segments` in a
    # script, and a plural that is decided on the spot
    rf"\{{[^{{}}]*:,[^{{}}]*\}} (?:{UNITS})s\b(?!/s)"
    rf"|\|count \}}\}} (?:{UNITS})s\b|\$\{{number\([^{{}}]*\)\}} (?:{UNITS})s\b"
    r"|[\"']s[\"'] if \S|\? \"\" : \"s\""
)
PLACES = ("longmem/wording.py", "pipelines/view/common.js")
"""Files that define how a count is written."""


def test_counts_have_their_plural() -> None:
    assert [counted(number, "token") for number in (0, 1, 2, 1_234_567)] == [
        "0 tokens",
        "1 token",
        "2 tokens",
        "1,234,567 tokens",
    ]


def test_parts_of_a_count_are_right_for_none_one_some_and_all() -> None:
    assert [part_of(part, 3, "cell") for part in range(4)] == [
        "none of 3 cells",
        "1 of 3 cells",
        "2 of 3 cells",
        "all 3 cells",
    ]
    assert [part_of(part, 2, "cell") for part in range(3)] == ["none of 2 cells", "1 of 2 cells", "both cells"]
    assert [part_of(part, 1, "cell") for part in range(2)] == ["no cell", "the only cell"]
    assert part_of(1_200, 2_400, "cell") == "1,200 of 2,400 cells"


def test_the_minus_is_as_wide_as_the_plus() -> None:
    assert [signed(number, "+.1%") for number in (-0.1234, 0.0, 0.1234)] == ["−12.3%", "+0.0%", "+12.3%"]


def test_a_reason_does_not_repeat_the_path(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        (tmp_path / "gone").read_text()
    assert reason_of(raised.value) == "No such file or directory"
    assert reason_of(ValueError("damaged")) == "damaged"


def own_plurals(source: str) -> list[str]:
    return [found[0] for found in OWN_PLURAL.finditer(source)]


def test_no_text_for_users_has_a_plural_of_its_own() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): own
        for folder in ("pipelines", "actors")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".j2", ".js") and path.relative_to(ROOT).as_posix() not in PLACES
        if (own := own_plurals(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        'f"{len(found):,} documents"',
        "<p>{{ counts.segments|count }} segments</p>",
        "`${number(gap)} tokens back`",
        "f\"window{'s' if number != 1 else ''}\"",
        '`passage${number === 1 ? "" : "s"}`',
    ],
)
def test_the_scan_finds_a_plural(line: str) -> None:
    assert own_plurals(line) != []
