"""Writing a report as one HTML file: Jinja templates with autoescaping, since names of documents are foreign text."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longmem.errors import OutputError


def write_page(path: Path, template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> Path:
    """Write a template of this folder, filled in, whole or not at all, and return the path. Raises OutputError."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    html = environment.get_template(template).render(**values)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # a name can hold half a surrogate pair, which has no UTF-8
        temporary.write_bytes(html.encode("utf-8", "replace"))
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}; free some space or choose another --out") from error
    return path
