# SPDX-License-Identifier: Apache-2.0
"""Common header of `summary.json`: everything needed to cite, check or repeat a result."""

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from platform import machine, python_version
from typing import Any

import longmem
from longmem.model.source import ModelDescription

LIBRARIES = ("torch", "transformers", "ray", "lancedb", "faiss-cpu", "pyarrow", "numpy")


def about(command: str, model: ModelDescription, executor: dict[str, Any], resumed: bool) -> dict[str, Any]:
    """Return command, model, settings, executor and versions that produced a result."""
    return {
        "longmem_version": longmem.__version__,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed": resumed,
        "model": {
            "name": model.name,
            "family": model.family,
            "trained": model.trained,
            "num_parameters": model.num_parameters,
            "memory_layer": model.settings["memory_layer"],
            "fingerprint": {**asdict(model.fingerprint), "sidenet": model.sidenet},
        },
        "settings": model.settings,
        "executor": executor,
        "versions": {"python": f"{python_version()} ({machine()})", **{name: version(name) for name in LIBRARIES}},
    }


def copies(summary: dict[str, Any]) -> bool:
    """Return whether the model's copy head had a memory to copy from.

    Without one, an untrained SideNet equals its backbone.
    """
    settings = summary["settings"]
    return bool(settings["copy_head"] and settings["memory_tokens"])
