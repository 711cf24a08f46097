# SPDX-License-Identifier: Apache-2.0
"""Guards of the project's language and of the size of its folders, each with a planted violation.

`python tests/architecture/test_language.py` lists all violations as `file:line: what is wrong`.
"""

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("longmem", "actors", "pipelines")
DOCUMENTED = (*PRODUCT, "benchmarks", "tests")
PROSE = (*DOCUMENTED, "docs")
PROSE_SUFFIXES = {".py", ".c", ".h", ".j2", ".md", ".toml", ".yml"}

MAX_MODULES = 20
"""Modules of one folder of the product, `__init__.py` not counted."""

OPENINGS = (
    *("Of", "By", "As", "With", "Without", "For", "From", "In", "On", "At", "To", "After", "Before", "Between"),
    *("What", "Who", "Where", "How", "Whether", "Which", "When", "While"),
)
FRAGMENT = re.compile(rf"(?:{'|'.join(OPENINGS)}|The same)(?![\w'-])")
"""Beginning of a docstring whose subject is outside the text."""

BANNED = (
    *("whoever", "nobody", "somebody", "company", "alike", "stands", "beside"),
    *("for ever", "foreseen", "which is well"),
)
BANNED_WORDS = re.compile(r"\b(?:" + "|".join(BANNED).replace(" ", r"\s+") + r")\b", re.IGNORECASE)
"""Words that describe machines as persons, or that have a plainer equivalent."""

DANGLING = re.compile(r"design\s+" + "§")
"""Reference to a design document that is not in the repository."""

Violation = tuple[int, str]
"""A line number and the reason."""


# --- scans of one source text ------------------------------------------------------------------------------------


def docstrings(source: str) -> Iterator[Violation]:
    """Yield line and text of every docstring: of modules, classes and functions, and of fields after an assignment."""
    for node in ast.walk(ast.parse(source)):
        for statement in getattr(node, "body", None) if isinstance(getattr(node, "body", None), list) else ():
            value = getattr(statement, "value", None) if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def comments(source: str) -> Iterator[Violation]:
    """Yield line and text of every comment; consecutive comment lines are one text, because a phrase may wrap."""
    start, texts, last = 0, list[str](), -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1 and texts:
                yield start, "\n".join(texts)
                texts = []
            start, last = (start if texts else token.start[0]), token.start[0]
            texts.append(token.string.lstrip("# "))
    if texts:
        yield start, "\n".join(texts)


def c_comments(source: str) -> Iterator[Violation]:
    """Yield line and text of every comment of a C source."""
    for found in re.finditer(r"/\*.*?\*/|//[^\n]*", source, re.DOTALL):
        yield source[: found.start()].count("\n") + 1, found[0]


def fragments(source: str) -> list[Violation]:
    """Return the docstrings that begin with a preposition or a question word."""
    return [
        (line, f"docstring begins with {found[0]!r}")
        for line, text in docstrings(source)
        if (found := FRAGMENT.match(text.strip()))
    ]


def banned_words(source: str) -> list[Violation]:
    """Return the banned words in docstrings and comments."""
    return _banned((*docstrings(source), *comments(source)))


def banned_words_in_c(source: str) -> list[Violation]:
    """Return the banned words in the comments of a C source."""
    return _banned(c_comments(source))


def _banned(texts: Iterable[Violation]) -> list[Violation]:
    return [
        (line + text[: found.start()].count("\n"), f"banned word {found[0]!r}")
        for line, text in texts
        for found in BANNED_WORDS.finditer(text)
    ]


def dangling_references(text: str) -> list[Violation]:
    """Return the references to a document that the repository does not hold."""
    return [
        (text[: found.start()].count("\n") + 1, "reference to a document outside the repository")
        for found in DANGLING.finditer(text)
    ]


# --- scans of a tree ---------------------------------------------------------------------------------------------


def scan(
    root: Path, folders: tuple[str, ...], check: Callable[[str], list[Violation]], suffixes: set[str] | None = None
) -> list[str]:
    """Apply `check` to every file of the folders and return its findings as `path:line: reason`."""
    files = [
        path
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in (suffixes or {".py"}) and path.is_file()
    ]
    return [
        f"{path.relative_to(root).as_posix()}:{line}: {reason}"
        for path in files
        for line, reason in check(path.read_text(encoding="utf-8"))
    ]


def dangling_in_tree(root: Path) -> list[str]:
    """Return dangling references of source, documentation and the pages in the root folder."""
    pages = [
        f"{path.name}:{line}: {reason}"
        for path in sorted(root.glob("*.md"))
        for line, reason in dangling_references(path.read_text(encoding="utf-8"))
    ]
    return scan(root, PROSE, dangling_references, PROSE_SUFFIXES) + pages


def repeated_class_names(root: Path) -> list[str]:
    """Return the top-level classes of the product that share their name with another one."""
    places = defaultdict(list)
    for folder in PRODUCT:
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(f"{path.relative_to(root).as_posix()}:{node.lineno}")
    repeated = {name: found for name, found in places.items() if len(found) > 1}
    return [f"{place}: class {name} is defined elsewhere too" for name, found in repeated.items() for place in found]


def crowded_folders(root: Path) -> list[str]:
    """Return the folders of the product that hold more than `MAX_MODULES` modules."""
    counts: dict[str, int] = defaultdict(int)
    for folder in PRODUCT:
        for path in (root / folder).rglob("*.py"):
            counts[path.parent.relative_to(root).as_posix()] += path.name != "__init__.py"
    return [f"{folder}: {count} modules" for folder, count in sorted(counts.items()) if count > MAX_MODULES]


GUARDS: dict[str, Callable[[Path], list[str]]] = {
    "docstrings are sentences or noun phrases": lambda root: scan(root, DOCUMENTED, fragments),
    "no banned word in the product": lambda root: (
        scan(root, PRODUCT, banned_words) + scan(root, PRODUCT, banned_words_in_c, {".c", ".h"})
    ),
    "class names are unique": repeated_class_names,
    "folders are small": crowded_folders,
    "no dangling reference": dangling_in_tree,
}


@pytest.mark.parametrize("guard", GUARDS)
def test_repository_keeps_language_rule(guard: str) -> None:
    assert GUARDS[guard](ROOT) == []


# --- planted violations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opening", [*OPENINGS, "The same"])
@pytest.mark.parametrize(
    "source",
    [
        '"""{} it."""',
        'class C:\n    """{} it."""',
        'def f():\n    """{} it."""',
        'class C:\n    x = 1\n    """{} it."""',
    ],
)
def test_fragments_planted_opening_is_found(source: str, opening: str) -> None:
    planted = source.format(opening)
    assert fragments(planted) == [(planted.count("\n") + 1, f"docstring begins with {opening!r}")]


@pytest.mark.parametrize(
    "text",
    ["In-process executor.", "Token ids.", "As-built version.", "Offset of a row.", "Withheld rows.", "Return it."],
)
def test_fragments_other_opening_is_accepted(text: str) -> None:
    assert fragments(f'"""{text}"""\nx = "In a string"\n') == []


@pytest.mark.parametrize("word", [*BANNED, "Nobody", "for\never"])
def test_banned_words_planted_word_is_found(word: str) -> None:
    assert banned_words(f'"""A row.\n\nIt is {word} here.\n"""') == [(3, f"banned word {word!r}")]
    comment = f"# it is {word} here".replace("\n", "\n# ")
    assert banned_words(f"x = 1\n{comment}\n") == [(2, f"banned word {word!r}")]


@pytest.mark.parametrize("planted", ["/* sums\n   beside it */", "// goes beside it\n", "int a; /* b */ /* beside */"])
def test_banned_words_in_c_planted_word_is_found(planted: str) -> None:
    line = planted[: planted.index("beside")].count("\n") + 2
    assert banned_words_in_c(f"int x;\n{planted}") == [(line, "banned word 'beside'")]
    assert banned_words_in_c("int beside; /* left */") == []


@pytest.mark.parametrize("text", ["besides", "standstill", "for everything", "accompany", "x = 'nobody'"])
def test_banned_words_other_words_and_code_are_accepted(text: str) -> None:
    assert banned_words(f'"""{text}"""\n' if "=" not in text else text) == []


def test_dangling_reference_planted_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").write_text("# Page\n\nSee (design\n" + "§4).\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("design " + "§2", encoding="utf-8")
    assert [found.partition(": ")[0] for found in dangling_in_tree(tmp_path)] == ["docs/page.md:3", "README.md:1"]


def test_class_names_planted_twin_is_found(tmp_path: Path) -> None:
    for folder in ("longmem/text", "actors"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "rows.py").write_text("class Row:\n    class Inner: ...\n", encoding="utf-8")
    (tmp_path / "actors/other.py").write_text("class Other:\n    class Inner: ...\n", encoding="utf-8")
    assert [found.partition(": ")[0] for found in repeated_class_names(tmp_path)] == [
        "longmem/text/rows.py:1",
        "actors/rows.py:1",
    ]


def test_folders_planted_module_too_many_is_found(tmp_path: Path) -> None:
    (tmp_path / "pipelines/job").mkdir(parents=True)
    for name in ["__init__", *(f"module_{number}" for number in range(MAX_MODULES))]:
        (tmp_path / f"pipelines/job/{name}.py").write_text("", encoding="utf-8")
    assert crowded_folders(tmp_path) == []
    (tmp_path / "pipelines/job/one_more.py").write_text("", encoding="utf-8")
    assert crowded_folders(tmp_path) == [f"pipelines/job: {MAX_MODULES + 1} modules"]


if __name__ == "__main__":
    found = [line for guard in GUARDS.values() for line in guard(ROOT)]
    sys.stdout.writelines(f"{line}\n" for line in found)
    sys.exit(bool(found))
