"""What a command asks for, as far as it is known before a model is loaded: enough to see that its job has finished."""

from pathlib import Path
from typing import Any

from longmem.model_source import ModelSource


def asked_model(source: ModelSource) -> dict[str, Any]:
    """A model by its name, its settings, and, in a local folder, the size and time of each file.

    This may differ for equal models, whose weights then are read to compare them. It is never the only thing that a
    result rests on.
    """
    folder = Path(source.source)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return {
        "source": source.source,
        "dtype": source.dtype,
        "device": source.device,
        "search": source.search,
        "settings": source.settings,
        "files": [
            [path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files
        ],
    }
