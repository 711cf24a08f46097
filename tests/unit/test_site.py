# SPDX-License-Identifier: Apache-2.0
"""Hooks of the documents' site: links hold there as in the repository, and lists are read as on a code host."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def converted(hooks: ModuleType, page: str, markdown: str) -> str:
    text: str = hooks.on_page_markdown(markdown, page=SimpleNamespace(file=SimpleNamespace(src_uri=page)))
    return text


@pytest.mark.parametrize(
    ("page", "link", "on_site"),
    [
        ("compare.md", "[a](viewer.md#files)", "[a](viewer.md#files)"),
        ("compare.md", "[a](../README.md#definitions)", "[a](index.md#definitions)"),
        ("decisions/0001-store-layout.md", "[a](../../CHANGELOG.md)", "[a](../changelog.md)"),
        ("index.md", "[a\nb](docs/icl.md)", "[a\nb](icl.md)"),
        ("index.md", "![a](docs/view.png)", "![a](view.png)"),
        ("index.md", "[a](docs/decisions/)", "[a](decisions/README.md)"),
        ("architecture.md", "[t.py](../longmem/types.py)", "[t.py](source/longmem/types.py.txt)"),
        ("tutorials/book.md", "[t.py](../../longmem/types.py)", "[t.py](../source/longmem/types.py.txt)"),
        ("architecture.md", "[longmem/](../longmem/)", "longmem/"),
        ("contributing.md", "[tutorials](docs/tutorials/)", "tutorials"),
        ("index.md", "[a](docs/gone.md)", "[a](gone.md)"),
        ("compare.md", "[a](#own) <https://example.org> [b](https://example.org)", None),
        ("compare.md", "```\n[a](../longmem/)\n```", None),
    ],
)
def test_a_link_leads_to_the_same_text(hooks: ModuleType, page: str, link: str, on_site: str | None) -> None:
    assert converted(hooks, page, link) == (on_site or link)


def test_parts_of_a_list_item_stay_in_it(hooks: ModuleType) -> None:
    """Python-Markdown wants four columns below an item, and a blank line after its second paragraph."""
    markdown = "1. One:\n   - part\n\n   More of one,\n   in two lines.\n2. Two\n\n```\n   code\n```\n"
    assert converted(hooks, "page.md", markdown) == (
        "1. One:\n    - part\n\n    More of one,\n    in two lines.\n\n2. Two\n\n```\n   code\n```\n"
    )
