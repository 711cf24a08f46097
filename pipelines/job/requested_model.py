"""Describes a command's request before a model is loaded: enough to see that its job has finished."""

from pathlib import Path
from typing import Any

from longmem.model.source import ModelSource


def asked_model(source: ModelSource) -> dict[str, Any]:
    """A model by its name, its settings, and, in a local folder, the size and time of each file.

    This may differ for equal models, whose weights then are read to compare them. It is never the only thing that a
    result rests on.
    """
    return {
        "source": source.source,
        "adapter": source.adapter,
        "dtype": source.dtype,
        "device": source.device,
        "search": source.search,
        "settings": source.settings,
        "files": _files(source.source),
        "adapter_files": _files(source.adapter),
    }


def _files(folder: str | None) -> list[tuple[str, int, int]]:
    """Return name, size and time of each file of a local folder; nothing for a hub id."""
    if folder is None or not Path(folder).is_dir():
        return []
    root = Path(folder)
    found = [(path.relative_to(root).as_posix(), path.stat()) for path in sorted(root.rglob("*")) if path.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]
