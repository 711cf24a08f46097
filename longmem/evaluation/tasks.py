"""Tasks of our own for the harness, on local JSONL files: no download, no network."""

from pathlib import Path
from typing import Any

import yaml

from longmem.errors import ConfigError

TASK_FILES = Path(__file__).parent / "task_files"


def local_task(name: str, path: str | Path) -> dict[str, Any]:
    """One of our tasks on a file, for the `tasks` of `simple_evaluate`.

    longmem_perplexity   {"text": …} on each line
    longmem_suffix       {"prefix": …, "candidates": […], "label": 3} on each line

    Raises ConfigError for an unknown task or a file that is not there.
    """
    known = sorted(file.stem for file in TASK_FILES.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"there is no task {name!r}; known are {', '.join(known)}")
    if not Path(path).is_file():
        raise ConfigError(f"data of {name} not found: {path} (expected a .jsonl file)")
    task: dict[str, Any] = yaml.safe_load((TASK_FILES / f"{name}.yaml").read_text(encoding="utf-8"))
    return task | {"dataset_kwargs": {"data_files": {"test": str(Path(path).absolute())}}}
