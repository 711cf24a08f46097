# SPDX-License-Identifier: Apache-2.0
"""LongMem: a frozen backbone writes keys and values to a memory, a SideNet reads them back.

    from longmem import LongMem, MemoryStore

The import loads neither Ray nor LanceDB nor FAISS: names are imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from longmem.version import __version__ as __version__

if TYPE_CHECKING:
    from longmem.config import LongMemConfig
    from longmem.model.longmem import LongMem
    from longmem.model.task_pipeline import pipeline
    from longmem.scoring.generate import Sampling
    from longmem.scoring.text import TextScores
    from longmem.store.config import MemoryStore
    from longmem.text.dataset_rows import read_dataset

__all__ = ["LongMem", "LongMemConfig", "MemoryStore", "Sampling", "TextScores", "pipeline", "read_dataset"]

_MODULES = {
    "LongMem": "longmem.model.longmem",
    "LongMemConfig": "longmem.config",
    "MemoryStore": "longmem.store.config",
    "Sampling": "longmem.scoring.generate",
    "TextScores": "longmem.scoring.text",
    "pipeline": "longmem.model.task_pipeline",
    "read_dataset": "longmem.text.dataset_rows",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
