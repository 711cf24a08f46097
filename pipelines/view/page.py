# SPDX-License-Identifier: Apache-2.0
"""The page itself: one HTML file with its style and script inside, which loads nothing from elsewhere.

Served, it asks its server for data. Exported, it holds the data of one passage.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from longmem.version import __version__
from pipelines.view.answers import Answers
from pipelines.view.questions import PageKind

FOLDER = Path(__file__).parent
SCRIPTS: dict[PageKind, tuple[str, ...]] = {
    "tokens": ("common.js", "source.js", "heatmap.js", "reading.js", "details.js", "page.js"),
    "items": ("common.js", "heatmap.js", "reading.js", "item.js", "answers.js", "items.js"),
}
"""Parts of each page's script, in order. Its body is the template of the same name."""
STYLES: dict[PageKind, tuple[str, ...]] = {"tokens": ("viewer.css",), "items": ("viewer.css", "items.css")}


def render(title: str, data: dict[str, Any] | None = None, kind: PageKind = "tokens") -> str:
    """Return the page of a kind of job. With `data` (`passage`) it needs no server."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (
        "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in parts)
        for parts in (STYLES[kind], SCRIPTS[kind])
    )
    policy = (
        f"default-src 'none'; style-src '{_hash_of(style)}'; script-src '{_hash_of(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        version=__version__,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=data,
        kind=kind,
    )


def passage(answers: Answers, document: int, first: int, count: int) -> dict[str, Any]:
    """Return all data that the page needs to show tokens of one document without a server."""
    page = answers.page(document, first, count)
    positions = range(page["first"], page["first"] + len(page["texts"]))
    tokens = {position: answers.token(document, position) for position in positions}
    segments = sorted({token["segment"] for token in tokens.values()})
    return {
        "run": answers.run(),
        "page": page,
        "tokens": tokens,
        "blocks": {segment: answers.blocks(document, segment) for segment in segments},
    }


def _hash_of(text: str) -> str:
    """Return the hash by which a browser recognises an inline style or script that the policy allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
