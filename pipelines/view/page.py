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

FOLDER = Path(__file__).parent
SCRIPTS = ("source.js", "text.js", "details.js", "page.js")
"""Parts of the page's script, in order."""


def render(title: str, data: dict[str, Any] | None = None) -> str:
    """Return the page. With `data` (`passage`) it needs no server."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (FOLDER / "viewer.css").read_text(encoding="utf-8")
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; style-src '{_hash_of(style)}'; script-src '{_hash_of(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.j2").render(
        title=title, version=__version__, policy=policy, style=Markup(style), script=Markup(script), data=data
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
