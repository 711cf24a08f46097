# SPDX-License-Identifier: Apache-2.0
"""Harness tasks of this project on local JSONL files: no download, no network."""

from pathlib import Path
from typing import Any

import yaml

from longmem.errors import ConfigError, DocumentError
from longmem.text.json_lines import read_objects

TASK_FILES = Path(__file__).parent / "task_files"
FIELDS: dict[str, dict[str, type]] = {
    "longmem_perplexity": {"text": str},
    "longmem_suffix": {"prefix": str, "candidates": list, "label": int},
}
"""Fields that the rows of each task must have."""


def local_task(name: str, path: str | Path) -> dict[str, Any]:
    """Return one of this project's tasks on a file, for the `tasks` of `simple_evaluate`.

        longmem_perplexity   {"text": …} on each line
        longmem_suffix       {"prefix": …, "candidates": […], "label": 3} on each line

    Raises ConfigError for an unknown task or a missing file. Raises DocumentError for the first row that the task's
    template would not reproduce exactly (for example, spell as `None`).
    """
    known = sorted(file.stem for file in TASK_FILES.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"there is no task {name!r}; known are {', '.join(known)}")
    if not Path(path).is_file():
        raise ConfigError(f"data of {name} not found: {path} (expected a .jsonl file)")
    _check_rows(Path(path), FIELDS[name])
    task: dict[str, Any] = yaml.safe_load((TASK_FILES / f"{name}.yaml").read_text(encoding="utf-8"))
    return task | {"dataset_kwargs": {"data_files": {"test": str(Path(path).absolute())}}}


def _check_rows(path: Path, fields: dict[str, type]) -> None:
    """Raise DocumentError for a row without one of the fields, or with a value of another type."""
    expected = ", ".join(f"`{name}` ({kind.__name__})" for name, kind in fields.items())
    for _, where, row in read_objects(path, expected=expected):
        for name, kind in fields.items():
            value = row.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise DocumentError(f"{where}: {name} is {value!r:.40}; expected {expected}")
            if isinstance(value, list) and not all(isinstance(item, str) for item in value):
                raise DocumentError(f"{where}: {name} must be texts, got {value!r:.40}")
