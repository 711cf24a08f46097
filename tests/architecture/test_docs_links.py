# SPDX-License-Identifier: Apache-2.0
"""Links and paths in the documents resolve inside the repository, and the scan can fail."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RECORDS = ("CHANGELOG.md", "docs/log.md")
"""Documents whose old entries keep the names that files had then. Their links are checked like those of the others."""

WRITTEN = ("benchmarks/results/",)
"""Folders that a command creates and that are not tracked."""

PACKAGES = ("longmem", "actors", "pipelines", "benchmarks", "tests", "docs", "findings")

LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[^\n]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
PATH = re.compile(rf"(?:{'|'.join(PACKAGES)})/[\w./-]*")
ABSENT = re.compile(r"design(?:'s)? §|§\s*\d+(?:\.\d+)? of the design|the design's key")
"""References to a design document that is not in the repository."""


def documents() -> list[str]:
    """Return the tracked Markdown files, relative to the repository."""
    listed = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        # no repository, as in an unpacked source distribution
        found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
        return sorted(path.relative_to(ROOT).as_posix() for path in found)
    return sorted(name for name in listed.stdout.split("\0") if name and (ROOT / name).exists())


def slugs(text: str) -> set[str]:
    """Return the anchors that a Markdown viewer gives to the headings."""
    titles = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in HEADING.findall(FENCE.sub("", text))]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(name: str, text: str, root: Path) -> Iterator[str]:
    """Yield each relative link of a document whose file or heading is absent."""
    for target in LINK.findall(CODE.sub("", FENCE.sub("", text))):
        if EXTERNAL.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = (root / name).parent / path if path else root / name
        found = file.exists() and root.resolve() in (file.resolve(), *file.resolve().parents)
        if found and anchor and file.suffix == ".md":
            found = anchor in slugs(file.read_text(encoding="utf-8"))
        if not found:
            yield target


def absent_paths(text: str, root: Path) -> Iterator[str]:
    """Yield each path of the repository that a document names as code and that is absent."""
    for span in CODE.findall(FENCE.sub("", text)):
        if PATH.fullmatch(span) and span not in WRITTEN and not (root / span).exists():
            yield span


@pytest.mark.parametrize("name", documents())
def test_document_link_resolves(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert list(broken_links(name, text, ROOT)) == []


@pytest.mark.parametrize("name", [name for name in documents() if name not in RECORDS])
def test_document_named_path_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert list(absent_paths(text, ROOT)) == []
    assert ABSENT.findall(text) == []


def test_documents_tracked_are_scanned() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/walkthrough.md"} <= set(documents())


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("[a](there.md)", []),
        ("[a](there.md#a-heading)", []),
        ("[a](#own-heading)\n\n## Own heading", []),
        ("[a](https://example.org/gone.md) [b](mailto:a@example.org)", []),
        ("```\n[a](gone.md)\n```\nand `[a](gone.md)`", []),
        ("[a](gone.md)", ["gone.md"]),
        ("![a](gone.png)", ["gone.png"]),
        ("[a](there.md#gone)", ["there.md#gone"]),
        ("[a](#gone)", ["#gone"]),
        ("[a](../../outside.md)", ["../../outside.md"]),
    ],
)
def test_scan_broken_link_is_found(tmp_path: Path, line: str, broken: list[str]) -> None:
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    (tmp_path / "outside.md").write_text("# Outside\n")
    (root / "docs/there.md").write_text("# A heading\n")
    (root / "docs/page.md").write_text(line)
    assert list(broken_links("docs/page.md", line, root)) == broken


@pytest.mark.parametrize(
    ("line", "absent"),
    [
        ("`longmem/types.py`", []),
        ("`longmem/…` and `tests/*.py`", []),
        ("`longmem/gone.py` and `docs/gone/`", ["longmem/gone.py", "docs/gone/"]),
    ],
)
def test_scan_absent_path_is_found(tmp_path: Path, line: str, absent: list[str]) -> None:
    (tmp_path / "longmem").mkdir()
    (tmp_path / "longmem/types.py").touch()
    assert list(absent_paths(line, tmp_path)) == absent


def test_scan_absent_design_is_found() -> None:
    assert ABSENT.findall("as the design " + "§5.6 says")
    assert not ABSENT.findall("paper, section 3.3; the design of the store")
