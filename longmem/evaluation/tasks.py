"""Tasks of our own for the harness, on local JSONL files: no download, no network."""

from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from longmem.errors import ConfigError

TASK_FILES = Path(__file__).parent / "task_files"


def task_manager(*folders: str | Path, include_defaults: bool = False) -> TaskManager:
    """Finds our tasks, those in `folders`, and the harness's own where they are asked for (that takes seconds)."""
    return TaskManager(include_path=[str(TASK_FILES), *map(str, folders)], include_defaults=include_defaults)


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
    return {"task": name, "dataset_kwargs": {"data_files": {"test": str(Path(path).absolute())}}}
