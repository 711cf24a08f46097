# SPDX-License-Identifier: Apache-2.0
"""Hooks of MkDocs: the site has the documents as they are in the repository, with links that hold in both places.

README, CONTRIBUTING and CHANGELOG become pages. Files of the repository that a document links to are copied into
`source/`. Folders have no page, so a link to one becomes its text.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
TOP = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site that lie outside `docs/` in the repository."""
PAGES = {path: page for page, path in TOP.items()}

FENCE = re.compile(r"(^ {0,3}(```|~~~).*?^ {0,3}\2[^\n]*$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<sign>!?)\[(?P<text>(?:\\.|[^\[\]\\])*)\]\(\s*<?(?P<target>[^)\s>#]*)(?P<anchor>#[^)\s>]*)?>?\s*\)")
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
NESTED = re.compile(r"^ {2,3}(?=\S)", re.MULTILINE)
"""Indentation below a list item: two columns are enough for CommonMark, four are needed here."""
NEXT_ITEM = re.compile(r"(\n\n {4}\S[^\n]*(?:\n {4}\S[^\n]*)*)\n(?=(?:\d+\.|-) )")
"""Last paragraph of a list item with several: CommonMark needs no blank line before the next item."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside `docs/`, and the files that documents link to."""
    from mkdocs.structure.files import File

    for page, path in TOP.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for path in sorted({target for page in files.documentation_pages() for target in _linked_files(page)}):
        files.append(File.generated(config, _copy(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the text of a page with links of the site, and with lists as Python-Markdown reads them."""

    def with_own_links(text: str) -> str:
        indented = NEXT_ITEM.sub(r"\1\n\n", NESTED.sub("    ", text))
        return LINK.sub(lambda link: _of_site(link, page.file.src_uri), indented)

    return "".join(part if is_fence else with_own_links(part) for part, is_fence in _parts(markdown))


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a text in order, and whether each is a fenced block."""
    end = 0
    for fence in FENCE.finditer(markdown):
        yield markdown[end : fence.start()], False
        yield fence[0], True
        end = fence.end()
    yield markdown[end:], False


def _linked_files(page: "File") -> Iterator[str]:
    """Yield the files of the repository outside `docs/` that a page links to."""
    for part, is_fence in _parts(page.content_string):
        for link in () if is_fence else LINK.finditer(part):
            path = _path(link, page.src_uri)
            if path is not None and _page_of(path) is None and (ROOT / path).is_file():
                yield path


def _path(link: "re.Match[str]", page: str) -> str | None:
    """Return the path in the repository that a link leads to; None for an external link or one within the page."""
    target = link["target"]
    if not target or EXTERNAL.match(target):
        return None
    folder = posixpath.dirname(TOP.get(page, f"docs/{page}"))
    return posixpath.normpath(posixpath.join(folder, target))


def _page_of(path: str) -> str | None:
    """Return the page of the site that a file of the repository becomes; None for one that becomes none."""
    if path.startswith("docs/"):
        if (ROOT / path).is_dir():
            path = f"{path}/README.md"
            return path.removeprefix("docs/") if (ROOT / path).is_file() else None
        # also of a file that is absent, so that MkDocs reports the link
        return path.removeprefix("docs/")
    return PAGES.get(path)


def _of_site(link: "re.Match[str]", page: str) -> str:
    path = _path(link, page)
    if path is None:
        return link[0]
    found = _page_of(path) or (_copy(path) if (ROOT / path).is_file() else None)
    if found is None:
        return link["text"]
    target = posixpath.relpath(found, posixpath.dirname(page) or ".")
    return f"{link['sign']}[{link['text']}]({target}{link['anchor'] or ''})"


def _copy(path: str) -> str:
    # a browser shows text, and would download or run other kinds
    return f"source/{path}.txt"
