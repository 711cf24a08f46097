# SPDX-License-Identifier: Apache-2.0
"""Requested model of a command, before it is loaded: enough to recognise a finished job."""

from pathlib import Path
from typing import Any

from longmem.backbone.model_names import gguf_file
from longmem.model.source import ModelSource


def describe_request(source: ModelSource) -> dict[str, Any]:
    """Return name and settings of a model and, for a local folder, size and modification time of each file.

    The description may differ for equal models; their weights are then loaded and compared. A resumed job never relies
    on the description alone.
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
    """Return name, size and modification time of each file of a local folder, or of a GGUF file; empty for a hub id."""
    if folder is None:
        return []
    if (file := gguf_file(folder)) is not None:
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns)]
    root = Path(folder)
    if not root.is_dir():
        return []
    found = [(path.relative_to(root).as_posix(), path.stat()) for path in sorted(root.rglob("*")) if path.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]
