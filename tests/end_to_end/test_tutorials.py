# SPDX-License-Identifier: Apache-2.0
"""The tutorials of the documents do what they say; that of the cluster is in `tests/service/test_tutorial.py`."""

from pathlib import Path

import pytest

from tests.tutorials import FOLDER, follow, steps_of, without_numbers

pytestmark = pytest.mark.thorough

ON_RAY = {"cluster.md"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.md") if path.name not in ON_RAY))
def test_a_tutorial_does_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_core: None
) -> None:
    monkeypatch.chdir(tmp_path)
    follow(name, tmp_path)


def test_every_tutorial_is_executed() -> None:
    assert {path.name for path in FOLDER.glob("*.md")} == {"book.md", "many-shot.md", "own-backbone.md", *ON_RAY}
    assert all(len([*steps_of(path.read_text("utf-8"))]) > 3 for path in FOLDER.glob("*.md"))


def test_a_step_that_fails_or_prints_something_else_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted violations."""
    monkeypatch.chdir(tmp_path)
    for body, why in (
        ("```console\n$ longmem view nowhere\n```\n", "nowhere is no folder"),
        ("```console\n$ echo one | cat\ntwo\n```\n", r"printed no line \['two'\]"),
        ("```python\nassert 1 == 2, 'not equal'\n```\n", "not equal"),
    ):
        (tmp_path / "page.md").write_text(body)
        with pytest.raises(AssertionError, match=why):
            follow(str(tmp_path / "page.md"), tmp_path)
    lines = "```console\n$ longmem doctor \\\n    --json\n$ echo a\nb\n```\n"
    assert [(step.code.split(), step.expected) for step in steps_of(lines)] == [
        (["longmem", "doctor", "--json"], ()),
        (["echo", "a"], ("b",)),
    ]
    skipped = "<!-- not executed: it would fail -->\n```console\n$ false | cat\n```\n"
    assert [*steps_of(skipped)] == []


def test_numbers_and_spaces_may_differ() -> None:
    assert without_numbers("  per token   1,099.917  −8.5%") == without_numbers("  per token  3.2 +12.1%")
    assert without_numbers("  per token  3.2") != without_numbers("  per word  3.2")
