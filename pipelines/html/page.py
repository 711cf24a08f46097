# SPDX-License-Identifier: Apache-2.0
"""Reports as single HTML files: Jinja templates with autoescaping, because names of documents are foreign text."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.job.output import write_text
from pipelines.job.summary import model_facts

REPORT_NAME = "report.html"
TEMPLATE = "report.html.j2"
"""File name of every job's template, inside the folder of the job."""


def write_page(path: Path, job_folder: Path, filters: Mapping[str, Callable[..., str]], **values: Any) -> Path:
    """Render the template in a job's folder, write the page atomically, and return its path.

    Raises OutputError.
    """
    environment = _environment(job_folder)
    environment.filters |= {"model_facts": model_facts, **filters}
    html = environment.get_template(TEMPLATE).render(**values)
    write_text(path, html)
    return path


@cache
def _environment(job_folder: Path) -> Environment:
    """Return the environment of a job's folder; it keeps compiled templates, which take 60 ms of a report."""
    return Environment(
        # second folder: style and macros that all reports share
        loader=FileSystemLoader([job_folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
