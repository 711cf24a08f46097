# SPDX-License-Identifier: Apache-2.0
"""Licence of every source file: its first line says it, for tools that collect licences."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPDX = "SPDX-License-Identifier: Apache-2.0"
LINES = {
    ".py": f"# {SPDX}",
    ".sh": f"# {SPDX}",
    ".c": f"// {SPDX}",
    ".h": f"// {SPDX}",
    ".j2": f"{{# {SPDX} -#}}",
}
"""The line by suffix; a page has the comment of its templates, which leaves no byte in it."""


def says_its_licence(path: Path) -> bool:
    """Return whether the first line, or the one after `#!`, is the SPDX line of the file's kind."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and lines[0].startswith("#!"):
        lines = lines[1:]
    return lines[:1] == [LINES[path.suffix]]


def test_every_source_file_says_its_licence() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    sources = [ROOT / name for name in listed.stdout.split("\0") if Path(name).suffix in LINES]
    sources = [path for path in sources if path.is_file()]
    assert {path.suffix for path in sources} == set(LINES), "has a kind of file gone?"
    assert [path.relative_to(ROOT).as_posix() for path in sources if not says_its_licence(path)] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty.py", ""),
        ("docstring_first.py", f'"""Module."""\n# {SPDX}\n'),
        ("other_licence.py", "# SPDX-License-Identifier: MIT\n"),
        ("behind_a_shebang.sh", f"#!/bin/sh\n\n# {SPDX}\n"),
        ("python_comment.c", f"# {SPDX}\n"),
    ],
)
def test_a_file_that_does_not_say_its_licence_is_seen(name: str, text: str, tmp_path: Path) -> None:
    """Planted violations."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert not says_its_licence(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.py", f"# {SPDX}\n"), ("a.sh", f"#!/bin/sh\n# {SPDX}\n"), ("a.h", f"// {SPDX}\n\nint x;\n")],
)
def test_a_file_that_says_its_licence_passes(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert says_its_licence(tmp_path / name)


def test_the_licence_is_the_whole_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text
    # sections 1 to 9
    assert all(f"\n   {number}. " in text for number in range(1, 10))
