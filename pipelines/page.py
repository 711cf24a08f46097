"""Writing a report as one HTML file: Jinja templates with autoescaping, since names of documents are foreign text."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.output import write_text


def write_page(
    path: Path, template: str, filters: Mapping[str, Callable[..., str]], *folders: Path, **values: Any
) -> Path:
    """Write a template of this folder or of `folders`, filled in, whole or not at all, and return the path.

    Raises OutputError.
    """
    environment = Environment(
        # a kind of report that has a folder of its own has its template there, and takes the style that all have
        loader=FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    html = environment.get_template(template).render(**values)
    write_text(path, html)
    return path
